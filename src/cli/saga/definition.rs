//! A definition from a file: YAML, of which JSON is a part.

use std::io::Read;
use std::path::Path;

use crate::cli::failure::{Failure, file_error};
use crate::saga::{Definition, Document};
use crate::types::{Error, limits};

/// Reads and checks a definition; `-` is standard input.
///
/// # Errors
///
/// `Invalid` where the file can't be read, is neither YAML nor JSON, or makes no sense.
pub fn read(file: &Path) -> Result<Definition, Failure> {
    let most = limits::MAX_SAGA_DEFINITION_BYTES as u64;
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().take(most + 1).read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|opened| opened.take(most + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| file_error(file, "the definition", &error))?;
    Ok(parse(&text)?)
}

fn parse(text: &str) -> Result<Definition, Error> {
    if text.len() > limits::MAX_SAGA_DEFINITION_BYTES {
        return Err(Error::invalid(format!(
            "the definition has more than {} bytes: make parts of it child sagas",
            limits::MAX_SAGA_DEFINITION_BYTES
        )));
    }
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        Error::invalid(format!(
            "the definition is not as it must be: {error}; see docs/SAGAS.md for what a step may have"
        ))
    })?;
    document.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "
name: trip
version: 1
steps:
  - name: flight
    activity: book-flight
    compensation: { activity: cancel-flight }
    retry: { max_attempts: 3 }
  - parallel:
      - { name: hotel, activity: book-hotel }
      - { name: car, txn: book-car }
  - { name: payment, activity: pay, pivot: true }
";
        let from_yaml = parse(yaml).expect("YAML");
        let from_json = parse(&from_yaml.to_json()).expect("JSON");
        assert_eq!(from_yaml, from_json);
        assert_eq!(from_yaml.steps().len(), 4);
        for (wrong, says) in [
            ("name: x\nversion: 1\nsteps:\n  - {name: a, activty: b}\n", "activty"),
            ("name: x\nversion: 0\nsteps: []\n", "version 0"),
            ("{", ""),
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert!(error.message.contains(says), "{error}");
        }
    }
}
