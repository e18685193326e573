//! The texts of a query: filter, order, and lists of fields. Errors point at the place.

use winnow::ascii::{Caseless, multispace0};
use winnow::combinator::{
    alt, cut_err, delimited, eof, fail, not, opt, peek, preceded, repeat, separated, terminated,
};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::{literal, one_of, take_till, take_while};

use super::field::is_name_byte;
use super::query::{Aggregate, Condition, OrderBy, Test};
use super::{Datum, Order};
use crate::types::limits::{MAX_INDEX_FIELDS, MAX_QUERY_BYTES, MAX_QUERY_CONDITIONS};
use crate::types::{Error, Result};

type Parsed<T> = winnow::Result<T, ErrMode<ContextError>>;

/// The characters behind the place that a message shows.
const SHOWN_CHARS: usize = 20;
const COMMA_OR_END: &str = "a comma, or the end";

/// `country = "FR" and score >= 10`; nothing for no condition.
pub(super) fn filter(text: &str) -> Result<Vec<Condition>> {
    let conditions = list(text, ["filter", "`and`, or the end"], condition, keyword("and"))?;
    if conditions.len() > MAX_QUERY_CONDITIONS {
        return Err(Error::invalid(format!(
            "the filter has {} conditions: the most is {MAX_QUERY_CONDITIONS}",
            conditions.len()
        )));
    }
    Ok(conditions)
}

/// `score desc, name`; nothing for no order.
pub(super) fn order(text: &str) -> Result<Vec<OrderBy>> {
    at_most_all_fields("order", list(text, ["order", COMMA_OR_END], order_by, comma)?)
}

/// `country, type`; nothing for no field.
pub(super) fn group_by(text: &str) -> Result<Vec<String>> {
    let what = "list of fields to group by";
    at_most_all_fields(what, list(text, [what, COMMA_OR_END], name, comma)?)
}

/// `count, sum`; nothing for no aggregate.
pub(super) fn aggregates(text: &str) -> Result<Vec<Aggregate>> {
    let what = "list of aggregates";
    at_most_all_fields(what, list(text, [what, COMMA_OR_END], aggregate, comma)?)
}

/// More than all fields of an index, and a measure, would name one twice.
fn at_most_all_fields<T>(what: &str, items: Vec<T>) -> Result<Vec<T>> {
    let most = MAX_INDEX_FIELDS + 1;
    if items.len() > most {
        return Err(Error::invalid(format!("the {what} has {} items: the most is {most}", items.len())));
    }
    Ok(items)
}

/// All of `text` as items between separators. Messages say what it is, and what may follow an item.
fn list<'t, T, S>(
    text: &'t str,
    [what, behind]: [&'static str; 2],
    item: impl FnMut(&mut &'t str) -> Parsed<T>,
    separator: impl FnMut(&mut &'t str) -> Parsed<S>,
) -> Result<Vec<T>> {
    if text.len() > MAX_QUERY_BYTES {
        return Err(Error::invalid(format!(
            "the {what} has {} bytes: the most is {MAX_QUERY_BYTES}",
            text.len()
        )));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let items = separated(1.., item, separator);
    let end = eof.context(expected(behind));
    let mut all = delimited(multispace0, items, (multispace0, end));
    all.parse(text).map_err(|error| {
        let at = (0..=error.offset()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        let found: String = text[at..].chars().take(SHOWN_CHARS).collect();
        let found = if found.is_empty() { "its end".into() } else { format!("{found:?}") };
        let wanted: Vec<String> = error.inner().context().filter_map(wanted).collect();
        Error::invalid(format!(
            "the {what} is wrong at character {}, at {found}: expected {}",
            text[..at].chars().count() + 1,
            if wanted.is_empty() { "something else".into() } else { wanted.join(" or ") }
        ))
    })
}

/// What was expected, of what the parsers say.
fn wanted(context: &StrContext) -> Option<String> {
    match context {
        StrContext::Expected(value) => Some(value.to_string()),
        _ => None,
    }
}

/// What a message says was expected.
fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

/// A word in any case, with no letter of a name behind it, and spaces around it.
fn keyword<'t>(word: &'static str) -> impl FnMut(&mut &'t str) -> Parsed<()> {
    move |input: &mut &'t str| {
        let end = not(one_of(|c: char| u8::try_from(c).is_ok_and(is_name_byte)));
        delimited(multispace0, (literal(Caseless(word)), end), multispace0).void().parse_next(input)
    }
}

fn comma(input: &mut &str) -> Parsed<()> {
    delimited(multispace0, ',', multispace0).void().parse_next(input)
}

fn name(input: &mut &str) -> Parsed<String> {
    let first = one_of(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = take_while(0.., |c: char| u8::try_from(c).is_ok_and(is_name_byte));
    let name = (first, rest).take().map(str::to_owned);
    cut_err(name.context(expected("the name of a field"))).parse_next(input)
}

fn order_by(input: &mut &str) -> Parsed<OrderBy> {
    let field = name(input)?;
    let order =
        opt(alt((keyword("asc").value(Order::Asc), keyword("desc").value(Order::Desc)))).parse_next(input)?;
    // What else stands behind the name is to be told here, where asc and desc can be named.
    let end = alt((eof.void(), ','.void()));
    cut_err(peek(preceded(multispace0, end)).context(expected("asc, desc, a comma, or the end")))
        .parse_next(input)?;
    Ok(OrderBy { field, order: order.unwrap_or_default() })
}

fn aggregate(input: &mut &str) -> Parsed<Aggregate> {
    let word = take_while(1.., |c: char| c.is_ascii_alphabetic());
    let known = word.verify_map(|word: &str| {
        Aggregate::ALL.into_iter().find(|aggregate| aggregate.name().eq_ignore_ascii_case(word))
    });
    cut_err(known.context(expected("count, sum, min or max"))).parse_next(input)
}

fn condition(input: &mut &str) -> Parsed<Condition> {
    let field = name(input)?;
    multispace0.parse_next(input)?;
    let sign = cut_err(sign.context(expected("=, !=, <, <=, >, >=, prefix or in"))).parse_next(input)?;
    multispace0.parse_next(input)?;
    let test = match sign {
        "=" => Test::In(vec![value(input)?]),
        "!=" => Test::Not(value(input)?),
        "<" => Test::Less(bound(input)?),
        "<=" => Test::LessOrEqual(bound(input)?),
        ">" => Test::Greater(bound(input)?),
        ">=" => Test::GreaterOrEqual(bound(input)?),
        "prefix" => Test::Prefix(cut_err(string.context(expected("a string in \""))).parse_next(input)?),
        _ => Test::In(values(input)?),
    };
    Ok(Condition { field, test })
}

fn sign(input: &mut &str) -> Parsed<&'static str> {
    alt((
        alt(("==", "=")).value("="),
        "!=".value("!="),
        "<=".value("<="),
        "<".value("<"),
        ">=".value(">="),
        ">".value(">"),
        keyword("prefix").value("prefix"),
        keyword("in").value("in"),
    ))
    .parse_next(input)
}

/// `("x", "y")`.
fn values(input: &mut &str) -> Parsed<Vec<Datum>> {
    let open = cut_err(('(', multispace0).context(expected("values in parentheses, such as (1, 2)")));
    let close = cut_err((multispace0, ')').context(expected("a comma or )")));
    delimited(open, separated(1.., value, comma), close).parse_next(input)
}

/// A value that has a smaller and a larger.
fn bound(input: &mut &str) -> Parsed<Datum> {
    let some = not(keyword("null")).context(expected("no null: it has no order; compare with = or !="));
    cut_err(some).parse_next(input)?;
    value(input)
}

fn value(input: &mut &str) -> Parsed<Datum> {
    let word = alt((
        keyword_value("null", Datum::Null),
        keyword_value("true", Datum::Bool(true)),
        keyword_value("false", Datum::Bool(false)),
        string.map(Datum::String),
        number,
    ));
    let wanted = expected("a value: a string in \", a number of JSON, true, false or null");
    cut_err(word.context(wanted)).parse_next(input)
}

/// As [`keyword`], but leaves the spaces behind it.
fn keyword_value<'t>(word: &'static str, datum: Datum) -> impl FnMut(&mut &'t str) -> Parsed<Datum> {
    move |input: &mut &'t str| {
        let end = not(one_of(|c: char| u8::try_from(c).is_ok_and(is_name_byte)));
        terminated(literal(Caseless(word)), end).value(datum.clone()).parse_next(input)
    }
}

/// A string as JSON writes it. Its span is found here; what it means is JSON's.
fn string(input: &mut &str) -> Parsed<String> {
    let escape = ('\\', one_of(|_: char| true)).void();
    let plain = take_till(1.., ['"', '\\']).void();
    let body = repeat(0.., alt((plain, escape))).fold(|| (), |(), ()| ());
    delimited('"', body, '"')
        .take()
        .verify_map(|span: &str| serde_json::from_str(span).ok())
        .parse_next(input)
}

/// A number as JSON writes it.
fn number(input: &mut &str) -> Parsed<Datum> {
    let span = take_while(1.., |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
    let datum = span.verify_map(|span: &str| {
        let number: serde_json::Number = serde_json::from_str(span).ok()?;
        Datum::from_json(&serde_json::Value::Number(number))
    });
    alt((datum, fail)).parse_next(input)
}
