//! Scans within transactions: phantoms, own writes, both directions.

use super::*;

/// Scans with `options`, changes something, and commits: how many attempts that took.
async fn attempts_with(
    client: &Client,
    options: &ScanOptions,
    take: usize,
    change: impl AsyncFn(&Client),
) -> u32 {
    let changed = AtomicU32::new(0);
    let done = client
        .transact(|txn| {
            let (changed, change, options) = (&changed, &change, options.clone());
            async move {
                let mut scan = txn.scan(options);
                for _ in 0..take {
                    scan.next().await.transpose()?;
                }
                drop(scan);
                if changed.fetch_add(1, Ordering::Relaxed) == 0 {
                    change(client).await;
                }
                txn.put("zz-result", "done")
            }
        })
        .await;
    done.expect("committed").attempts
}

#[tokio::test]
async fn phantoms_are_conflicts_as_far_as_the_scan_was_read() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    for key in ["c1", "c3", "i1", "i3", "q1", "q3"] {
        client.put(key, "v").await.expect("put");
    }
    let put = async |client: &Client, key: &str| {
        client.put(key, "new").await.expect("put");
    };
    let all = ScanOptions::all();
    let reverse = ScanOptions::all().reverse();
    // Two rows forward end behind c3, two backward before q1.
    assert_eq!(attempts_with(&client, &all, 2, async |client| put(client, "c2").await).await, 2);
    assert_eq!(attempts_with(&client, &all, 2, async |client| put(client, "c4").await).await, 1);
    assert_eq!(attempts_with(&client, &all, 2, async |client| put(client, "a").await).await, 2);
    assert_eq!(attempts_with(&client, &reverse, 2, async |client| put(client, "a0").await).await, 1);
    assert_eq!(attempts_with(&client, &reverse, 2, async |client| put(client, "zzz").await).await, 2);
    // What is removed is missing, wherever it stood.
    let delete = async |client: &Client| {
        client.delete("i3").await.expect("delete");
    };
    assert_eq!(attempts_with(&client, &ScanOptions::prefix("i"), 9, delete).await, 2);
    // To the end is to the end of the range, and no further.
    assert_eq!(
        attempts_with(&client, &ScanOptions::prefix("i"), 9, async |client| put(client, "i9").await).await,
        2
    );
    assert_eq!(
        attempts_with(&client, &ScanOptions::prefix("i"), 9, async |client| put(client, "j").await).await,
        1
    );
    // A scan that nobody read from saw nothing.
    assert_eq!(attempts_with(&client, &all, 0, async |client| put(client, "b").await).await, 1);
    // A limit ends a scan like a reader who stops.
    let limited = ScanOptions::prefix("q").limit_rows(1);
    assert_eq!(attempts_with(&client, &limited, 9, async |client| put(client, "q2").await).await, 1);
    assert_eq!(attempts_with(&client, &limited, 9, async |client| put(client, "q0").await).await, 2);
}

fn show(rows: &[Row]) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    rows.iter().map(|row| (text(&row.key), text(&row.record.value))).collect()
}

/// The rows that a scan of the model gives.
fn expected(model: &BTreeMap<String, String>, options: &ScanOptions) -> Vec<(String, String)> {
    let range = options.meant().expect("proper options");
    let inside = |key: &String| range.as_ref().is_some_and(|range| range.contains(key.as_bytes()));
    let mut rows: Vec<(String, String)> = model
        .iter()
        .filter(|(key, _)| inside(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if options.reverse {
        rows.reverse();
    }
    if options.keys_only {
        rows.iter_mut().for_each(|(_, value)| value.clear());
    }
    if let Some(limit) = options.limit_rows {
        rows.truncate(limit as usize);
    }
    if let Some(limit) = options.limit_bytes {
        let mut left = limit as usize;
        let mut fits = |(nth, (key, value)): (usize, &(String, String))| {
            let bytes = key.len() + value.len();
            let fits = nth == 0 || bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        };
        let count = rows.iter().enumerate().take_while(|row| fits(*row)).count();
        rows.truncate(count);
    }
    rows
}

fn random_options(random: &mut StdRng) -> ScanOptions {
    let mut options = match random.random_range(0..4) {
        0 => ScanOptions::all(),
        1 => ScanOptions::prefix(["b", "k", "t", "k1"][random.random_range(0..4)]),
        2 => ScanOptions::from(format!("b{:02}", random.random_range(0..40))),
        _ => ScanOptions::range(format!("b{:02}", random.random_range(0..40)), "t20"),
    };
    options.reverse = random.random_bool(0.5);
    options.keys_only = random.random_bool(0.2);
    options.limit_rows = random.random_bool(0.4).then(|| random.random_range(1..20));
    options.limit_bytes = random.random_bool(0.3).then(|| random.random_range(1..60));
    options
}

#[tokio::test]
async fn scans_show_own_writes_in_order_both_ways() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let mut stored = BTreeMap::new();
    for n in 0..30 {
        let key = format!("{}{n:02}", ["b", "k", "t"][n % 3]);
        client.put(&key, n.to_string()).await.expect("put");
        stored.insert(key, n.to_string());
    }
    for seed in 0..40 {
        let random = &mut StdRng::seed_from_u64(seed);
        let txn = Txn::new(client.clone());
        let mut model = stored.clone();
        for _ in 0..random.random_range(0..15) {
            let key =
                format!("{}{:02}", ["b", "k", "t"][random.random_range(0..3)], random.random_range(0..34));
            match random.random_range(0..3) {
                0 => {
                    txn.delete(&key).expect("kept");
                    model.remove(&key);
                }
                1 => {
                    txn.put(&key, "7").expect("kept");
                    model.insert(key, "7".into());
                }
                _ => {
                    txn.add(&key, 100).expect("kept");
                    let before: i64 = model.get(&key).map_or(0, |text| text.parse().expect("a number"));
                    model.insert(key, (before + 100).to_string());
                }
            }
        }
        for _ in 0..10 {
            let options = random_options(random);
            let rows = txn.scan(options.clone()).collect_rows().await.expect("scan");
            assert_eq!(show(&rows), expected(&model, &options), "seed {seed}: {options:?}");
        }
        let keys: Vec<&String> = stored.keys().chain(model.keys()).collect();
        let records = txn.get_many(&keys).await.expect("get_many");
        for (key, record) in keys.into_iter().zip(records) {
            assert_eq!(text(record.as_ref()), model.get(key).map(String::as_str), "seed {seed}: {key}");
        }
    }
}

#[tokio::test]
async fn a_scan_shows_what_was_written_when_it_began() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let txn = Txn::new(client);
    txn.put("b", "1").expect("kept");
    let scan = txn.scan(ScanOptions::all());
    txn.put("c", "2").expect("kept");
    assert_eq!(show(&scan.collect_rows().await.expect("scan")), [("b".to_owned(), "1".to_owned())]);
    for wrong in [
        ScanOptions::all().at(Timestamp(7)),
        ScanOptions::all().limit_rows(0),
        ScanOptions::all().limit_bytes(0),
        ScanOptions::range("b", "a"),
    ] {
        let error = txn.scan(wrong).next().await.expect("an item").expect_err("wrong options");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
}
