//! Values as bytes: their order is kept, they read back exactly, and sums are exact.

use std::cmp::Ordering;

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::index::{Datum, Fixed, Number, Order};

/// Integers where f64 begins to round, and where it is far off.
fn integer() -> impl Strategy<Value = i128> {
    let edges = vec![0, 1, 1 << 53, (1 << 53) + 1, 1 << 62, i128::from(i64::MAX), i128::from(u64::MAX)];
    let near = (proptest::sample::select(edges), -1100..=1100_i128, any::<bool>())
        .prop_map(|(edge, off, negative)| if negative { off - edge } else { edge + off });
    prop_oneof![near, i128::from(i64::MIN)..=i128::from(u64::MAX)]
        .prop_map(|n| n.clamp(i128::from(i64::MIN), i128::from(u64::MAX)))
}

fn float() -> impl Strategy<Value = f64> {
    let near = integer().prop_map(|n| n as f64);
    prop_oneof![near, -3.0..3.0, any::<f64>(), Just(-0.0), Just(f64::MAX), Just(f64::MIN_POSITIVE)]
        .prop_filter("JSON has only finite numbers", |number| number.is_finite())
}

fn number() -> impl Strategy<Value = Value> {
    let integers = integer().prop_map(|n| match i64::try_from(n) {
        Ok(n) => Value::from(n),
        Err(_) => Value::from(u64::try_from(n).expect("clamped")),
    });
    prop_oneof![integers, float().prop_map(Value::from)]
}

pub(super) fn scalar() -> impl Strategy<Value = Value> {
    let text = proptest::collection::vec(
        prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('é'), Just('\u{10ffff}'), any::<char>()],
        0..6,
    );
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number(),
        text.prop_map(|text| Value::from(text.into_iter().collect::<String>())),
    ]
}

/// The order that is promised, by other means: numbers as the exact rationals that they are.
fn compare(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        _ => 4,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn compare_numbers(a: &serde_json::Number, b: &serde_json::Number) -> Ordering {
    let integer = |n: &serde_json::Number| n.as_i64().map(i128::from).or(n.as_u64().map(i128::from));
    // An integer of 64 bits against a float: by the float's whole part, then by what is behind the point.
    let mixed = |a: i128, b: f64| match a.cmp(&(b.trunc() as i128)) {
        Ordering::Equal => 0.0.partial_cmp(&b.fract()).expect("finite"),
        other => other,
    };
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => mixed(a, b.as_f64().expect("a float")),
        (None, Some(b)) => mixed(b, a.as_f64().expect("a float")).reverse(),
        (None, None) => a.as_f64().partial_cmp(&b.as_f64()).expect("finite"),
    }
}

fn datum(value: &Value) -> Datum {
    Datum::from_json(value).expect("a scalar")
}

fn encoded(datum: &Datum, order: Order) -> BytesMut {
    let mut buffer = BytesMut::new();
    datum.encode(order, &mut buffer);
    buffer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_order_of_values_is_kept(a in scalar(), b in scalar()) {
        let expected = compare(&a, &b);
        let (a, b) = (datum(&a), datum(&b));
        prop_assert_eq!(a.cmp(&b), expected);
        prop_assert_eq!(encoded(&a, Order::Asc).cmp(&encoded(&b, Order::Asc)), expected);
        prop_assert_eq!(encoded(&a, Order::Desc).cmp(&encoded(&b, Order::Desc)), expected.reverse());
    }

    /// Neighbours, where rounding makes one of them of the other.
    #[test]
    fn the_order_of_neighbours_is_kept(a in integer(), off in -2000..2000_i128, as_float: bool) {
        let json = |n: i128| i64::try_from(n).map_or_else(|_| (n as u64).into(), Value::from);
        let b = (a + off).clamp(i128::from(i64::MIN), i128::from(u64::MAX));
        let b = if as_float { Value::from(b as f64) } else { json(b) };
        let (x, y) = (datum(&json(a)), datum(&b));
        prop_assert_eq!(x.cmp(&y), compare(&json(a), &b));
        prop_assert_eq!(encoded(&x, Order::Asc).cmp(&encoded(&y, Order::Asc)), compare(&json(a), &b));
    }

    #[test]
    fn values_read_back_exactly(value in scalar(), rest in proptest::collection::vec(any::<u8>(), 0..4)) {
        let datum = datum(&value);
        prop_assert_eq!(compare(&datum.to_json(), &value), Ordering::Equal);
        for order in [Order::Asc, Order::Desc] {
            let bytes = [&encoded(&datum, order)[..], &rest].concat();
            let mut input = &bytes[..];
            prop_assert_eq!(Datum::take(order, &mut input), Some(datum.clone()));
            prop_assert_eq!(input, &rest[..]);
        }
    }

    /// What decodes at all is what would have been encoded: a value has one encoding.
    #[test]
    fn a_value_has_one_encoding(value in scalar(), at in 0..12_usize, bit in 0..8_u8, cut in 0..12_usize) {
        for order in [Order::Asc, Order::Desc] {
            let mut bytes = encoded(&datum(&value), order).to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            bytes.truncate(bytes.len().saturating_sub(cut / 4));
            let mut input = &bytes[..];
            if let Some(read) = Datum::take(order, &mut input) {
                let used = bytes.len() - input.len();
                prop_assert_eq!(&encoded(&read, order)[..], &bytes[..used]);
                prop_assert_eq!(Datum::from_json(&read.to_json()), Some(read));
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_order(mut units in proptest::collection::vec(-(10_i128.pow(27))..10_i128.pow(27), 0..20)) {
        let sum = |units: &[i128]| {
            units.iter().try_fold(Fixed::ZERO, |sum, units| sum.checked_add(Fixed(*units))).expect("fits")
        };
        let forwards = sum(&units);
        units.sort_unstable();
        prop_assert_eq!(sum(&units), forwards);
        // What is shown is what it is: without the point and the zeros, the units.
        let text = forwards.to_string();
        let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
        prop_assert_eq!(format!("{whole}{part:0<9}").parse::<i128>().expect("digits"), forwards.0);
    }

    /// Any decimal text of up to nine digits behind the point that a float can tell from its neighbours is itself.
    #[test]
    fn decimal_texts_become_what_they_say(whole in 0..100_000_i64, part in 0..1_000_000_000_i64, negative: bool) {
        let sign = if negative { "-" } else { "" };
        let value: Value = serde_json::from_str(&format!("{sign}{whole}.{part:09}")).expect("a number");
        let units = i128::from(whole) * 1_000_000_000 + i128::from(part);
        let Datum::Number(number) = datum(&value) else { panic!("a number") };
        prop_assert_eq!(Fixed::from_number(number), Some(Fixed(if negative { -units } else { units })));
    }
}

#[test]
fn summands_are_limited_and_not_rounded() {
    let fixed = |value: Value| match datum(&value) {
        Datum::Number(number) => Fixed::from_number(number).map(|fixed| fixed.to_string()),
        _ => None,
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(fixed(json!(0.1)), some("0.1"));
    assert_eq!(fixed(json!(-0.0)), some("0"));
    assert_eq!(fixed(json!(1e-9)), some("0.000000001"));
    assert_eq!(fixed(json!(1e-10)), None);
    assert_eq!(fixed(json!(0.1234567891)), None);
    assert_eq!(fixed(json!(1_000_000_000_000_000_000_i64)), some("1000000000000000000"));
    assert_eq!(fixed(json!(1e18)), some("1000000000000000000"));
    assert_eq!(fixed(json!(1_000_000_000_000_000_001_i64)), None);
    assert_eq!(fixed(json!(-1e19)), None);
    assert_eq!(fixed(json!(1e300)), None);
    assert_eq!(fixed(json!(u64::MAX)), None);
}

#[test]
fn sums_are_json_numbers_where_those_are_exact() {
    assert_eq!(Fixed(1_500_000_000).to_json(), json!(1.5));
    assert_eq!(Fixed(-2_000_000_000).to_json(), json!(-2));
    assert_eq!(Fixed(10_i128.pow(27) + 1).to_json(), json!("1000000000000000000.000000001"));
    assert_eq!(Fixed(-1).to_json(), json!(-1e-9));
}

#[test]
fn equal_numbers_are_one() {
    let same = |a: Value, b: Value| assert_eq!(datum(&a), datum(&b));
    same(json!(1), json!(1.0));
    same(json!(0), json!(-0.0));
    same(json!(u64::MAX - 2047), json!(18_446_744_073_709_549_568.0));
    assert!(datum(&json!(u64::MAX)) < datum(&json!(18_446_744_073_709_551_616.0)));
    assert_eq!(Number::from_f64(f64::NAN), None);
    assert_eq!(Number::from_integer(i128::from(u64::MAX) + 1), None);
}
