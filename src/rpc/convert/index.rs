//! Definitions of query indexes.

use crate::index::{Definition, Field, Missing, OnError, Spec};
use crate::rpc::v1;
use crate::types::Result;

/// A definition from a message, checked.
///
/// # Errors
///
/// `Invalid`, saying what is wrong and what is allowed.
pub fn index_spec_from_proto(spec: v1::IndexSpec) -> Result<Spec> {
    let fields = |texts: Vec<String>| texts.iter().map(|text| text.parse::<Field>()).collect::<Result<_>>();
    let spec = Spec {
        name: spec.name,
        prefix: spec.prefix,
        kind: spec.kind.parse()?,
        on: fields(spec.on)?,
        measure: (!spec.measure.is_empty()).then(|| spec.measure.parse()).transpose()?,
        covering: fields(spec.covering)?,
        missing: if spec.missing.is_empty() { Missing::default() } else { spec.missing.parse()? },
        on_error: if spec.on_error.is_empty() { OnError::default() } else { spec.on_error.parse()? },
    };
    // Under any id: what is wrong with it is told at once.
    Ok(Definition::new(0, 0, spec)?.spec().clone())
}

/// A definition as a message.
pub fn index_spec_to_proto(spec: &Spec) -> v1::IndexSpec {
    let texts = |fields: &[Field]| fields.iter().map(Field::to_string).collect();
    v1::IndexSpec {
        name: spec.name.clone(),
        prefix: spec.prefix.clone(),
        kind: spec.kind.name().to_owned(),
        on: texts(&spec.on),
        measure: spec.measure.as_ref().map(Field::to_string).unwrap_or_default(),
        covering: texts(&spec.covering),
        missing: spec.missing.name().to_owned(),
        on_error: spec.on_error.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ErrorKind;

    #[test]
    fn a_definition_travels() {
        let sent = v1::IndexSpec {
            name: "by_team".into(),
            prefix: "user/".into(),
            kind: "min".into(),
            on: vec!["$.team".into(), "key-part:1(-) desc".into()],
            measure: "score=$.result.score:number".into(),
            covering: vec!["$['e mail']".replace("$['e mail']", "mail=$['e mail']")],
            missing: String::new(),
            on_error: "dead-letter".into(),
        };
        let spec = index_spec_from_proto(sent.clone()).expect("right");
        let again = index_spec_to_proto(&spec);
        assert_eq!(index_spec_from_proto(again.clone()), Ok(spec));
        assert_eq!((&*again.missing, &*again.on_error, again.on.len()), ("skip", "dead-letter", 2));
        for wrong in [
            v1::IndexSpec { kind: "hash".into(), ..sent.clone() },
            v1::IndexSpec { on: vec![], ..sent.clone() },
            v1::IndexSpec { measure: String::new(), ..sent.clone() },
            v1::IndexSpec { on_error: "ignore".into(), ..sent.clone() },
            v1::IndexSpec { name: "A b".into(), ..sent },
        ] {
            assert_eq!(index_spec_from_proto(wrong).expect_err("wrong").kind, ErrorKind::Invalid);
        }
    }
}
