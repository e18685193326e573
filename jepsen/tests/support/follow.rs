//! Followers of the simple store's changes, and copies of histories in which one thing that they were told is changed.

use kvorum_jepsen::history::{Changed, F, Following, Op, Told, Value};

/// What the store keeps of its changes.
#[derive(Debug, Default)]
pub struct Log {
    pub transactions: Vec<(u64, Vec<Changed>)>,
}

/// The followers of a generated history: name, what it asks for, and after how many transactions it begins.
pub fn followers() -> Vec<(&'static str, Following)> {
    let whole = Following { before_images: true, ..Following::default() };
    let part = Following { ranges: vec![("k1".into(), Some("k8".into()))], ..whole.clone() };
    vec![("all", whole), ("part", part), ("scan", Following { scans: true, ..Following::default() })]
}

impl Log {
    /// What a follower is told when it has all up to a place, and now up to the end, which is at `clock`.
    pub fn told(&self, following: &Following, from: usize, clock: u64) -> Vec<Told> {
        let mut told = Vec::new();
        for (at, changes) in &self.transactions[from..] {
            let followed = changes.iter().filter(|changed| following.has(&changed.key)).cloned();
            let changes: Vec<Changed> = followed
                .map(|changed| Changed {
                    before: changed.before.filter(|_| following.before_images),
                    ..changed
                })
                .collect();
            if !changes.is_empty() {
                told.push(Told::Changes { at: *at, changes });
            }
        }
        told.push(Told::Progress { at: clock });
        told
    }
}

/// An entry of a follower.
pub fn invoke(name: &str, following: &Following, is_first: bool) -> Op {
    let value = if is_first { Value::Follow(following.clone()) } else { Value::Nil };
    Op::invoke(0, F::Follow, value).with_key(name)
}

/// What can be done to what a follower is told, and the anomalies that may show it.
pub const HARMS: [(&str, &[&str]); 7] = [
    ("left out", &["lost-transaction", "followers-differ"]),
    ("told again", &["told-twice"]),
    ("told in part", &["torn-transaction", "followers-differ"]),
    ("told in two parts", &["torn-transaction"]),
    ("other value", &["torn-transaction", "wrong-sum", "followers-differ"]),
    ("other before", &["wrong-before-image", "followers-differ"]),
    ("swapped with the next", &["not-rising"]),
];

/// A copy in which one transaction that a follower is told is told wrong; `None` where there is none that can be.
pub fn harm(ops: &[Op], follower: &str, harm: &str, skip: usize) -> Option<Vec<Op>> {
    let mut ops = ops.to_vec();
    let told = ops.iter_mut().filter(|op| op.key.as_deref() == Some(follower));
    let lists = told.filter_map(|op| match &mut op.value {
        Value::Told(told) => Some(told),
        _ => None,
    });
    let mut left = skip;
    for list in lists {
        for place in 0..list.len() {
            let Told::Changes { at, changes } = list[place].clone() else { continue };
            if !can_be(harm, list, place, &changes) {
                continue;
            }
            if left > 0 {
                left -= 1;
                continue;
            }
            do_harm(harm, list, place, at, changes);
            return Some(ops);
        }
    }
    None
}

fn can_be(harm: &str, list: &[Told], place: usize, changes: &[Changed]) -> bool {
    match harm {
        "told in part" | "told in two parts" => changes.len() > 1,
        "other value" => changes[0].value.is_some(),
        "other before" => changes[0].before.is_some(),
        "swapped with the next" => matches!(list.get(place + 1), Some(Told::Changes { .. })),
        _ => true,
    }
}

fn do_harm(harm: &str, list: &mut Vec<Told>, place: usize, at: u64, mut changes: Vec<Changed>) {
    match harm {
        "left out" => drop(list.remove(place)),
        "told again" => list.insert(place, list[place].clone()),
        "told in part" => {
            changes.pop();
            list[place] = Told::Changes { at, changes };
        }
        "told in two parts" => {
            let rest = changes.split_off(1);
            list[place] = Told::Changes { at, changes };
            list.insert(place + 1, Told::Changes { at, changes: rest });
        }
        "other value" => {
            changes[0].value = changes[0].value.map(|value| value + 1_000_000_000);
            list[place] = Told::Changes { at, changes };
        }
        "other before" => {
            changes[0].before = changes[0].before.map(|before| Some(before.unwrap_or(0) + 1));
            list[place] = Told::Changes { at, changes };
        }
        _ => list.swap(place, place + 1),
    }
}
