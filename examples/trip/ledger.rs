//! A service's ledger: an append-only file of JSON lines, outside of kvorum. What is not in it has not happened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::wire::{Answer, Request, What};

/// A line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// What happened.
    pub entry: Entry,
    /// The trip, the call's key and its fence.
    pub trip: String,
    pub key: String,
    pub fence: u64,
    /// The number of the booking or payment that was made, or cancelled; empty where there is none.
    pub number: String,
    pub cents: u64,
}

/// What a line tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A flight or room was booked, or money taken.
    Done,
    /// It was cancelled; or what is not booked was, so that it can't be booked by an earlier call any more.
    Undone,
    /// Somebody asked and was told that nothing is done; so no earlier call may do it any more.
    Asked,
    /// A call that was made before was made again, and changed nothing.
    Again,
    /// A call came too late, and changed nothing.
    Late,
}

/// Where a trip is with a service.
#[derive(Default)]
struct Trip {
    /// The largest fence that was seen.
    fence: u64,
    /// The key and number of what is booked or paid.
    standing: Option<(String, String)>,
    /// The key of the last cancellation.
    undone: Option<String>,
}

/// Bugs of a service, to see that the check of the books finds them. Set by the environment variable `TRIP_BREAK`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Broken {
    /// `double-pay`: does not know a payment that is made again.
    double_pay: bool,
    /// `no-fence`: takes calls that were overtaken.
    no_fence: bool,
    /// `no-cancel`: says that it has cancelled, and has not.
    no_cancel: bool,
}

impl Broken {
    /// What the environment says, for the service of this name.
    pub fn from_env(service: &str) -> Self {
        let said = std::env::var("TRIP_BREAK").unwrap_or_default();
        Self {
            double_pay: said == "double-pay" && service == "payments",
            no_fence: said == "no-fence",
            no_cancel: said == "no-cancel",
        }
    }
}

/// A ledger that a service keeps.
pub struct Ledger {
    file: File,
    trips: HashMap<String, Trip>,
    /// How many bookings or payments were ever made.
    made: u64,
    broken: Broken,
}

impl Ledger {
    /// Opens a ledger and learns from it all that happened before: the service may have been killed at any moment.
    pub fn open(path: &Path, broken: Broken) -> Result<Self> {
        let (lines, length) = read(path)?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        // A line that was not written to its end was not answered either: it has not happened.
        file.set_len(length)?;
        let mut ledger = Self { file, trips: HashMap::new(), made: 0, broken };
        for line in &lines {
            ledger.learn(line);
        }
        Ok(ledger)
    }

    /// Whether something is booked or paid.
    pub fn stands(&self, trip: &str) -> bool {
        self.trips.get(trip).is_some_and(|trip| trip.standing.is_some())
    }

    /// Does what is asked, and writes it down before the caller is told.
    pub fn take(&mut self, request: &Request) -> Result<Answer> {
        let (entry, number, answer) = self.decide(request);
        let line = Line {
            entry,
            trip: request.trip.clone(),
            key: request.key.clone(),
            fence: request.fence,
            number,
            cents: request.cents,
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        self.learn(&line);
        Ok(answer)
    }

    fn decide(&self, request: &Request) -> (Entry, String, Answer) {
        let none = Trip::default();
        let trip = self.trips.get(&request.trip).unwrap_or(&none);
        // The fence. Attempt 1 gets lost in the network, attempt 2 is made, or the saga gives up and compensates; and then
        // attempt 1 arrives after all. Nobody waits for it any more. Done now, nobody would ever undo it: so it is refused.
        if request.fence < trip.fence && !self.broken.no_fence {
            return (Entry::Late, String::new(), Answer::Late);
        }
        let done = |number: &str| Answer::Done { number: number.to_owned() };
        match (request.what, &trip.standing) {
            // The idempotency key. The service did it and its answer was lost: the next attempt is told the same again.
            (What::Do, Some((key, number))) if *key == request.key && !self.broken.double_pay => {
                (Entry::Again, number.clone(), done(number))
            }
            (What::Do, Some((key, _))) if *key != request.key => {
                (Entry::Again, String::new(), Answer::Refused { why: format!("{key} has one already") })
            }
            // New: also where it was cancelled before. A saga that was reset books once more, under the same key; that it
            // comes after the cancellation, the fence tells.
            (What::Do, _) => {
                let number = (self.made + 1).to_string();
                (Entry::Done, number.clone(), done(&number))
            }
            (What::Undo, None) if trip.undone.as_ref() == Some(&request.key) => {
                (Entry::Again, String::new(), done(""))
            }
            (What::Undo, Some((_, number))) if self.broken.no_cancel => {
                (Entry::Again, String::new(), done(number))
            }
            // What was never booked is cancelled too, and that is written down. A compensation may overtake an attempt that
            // was given up as lost: with this line's fence, that one is refused when it comes.
            (What::Undo, standing) => {
                let number = standing.as_ref().map(|(_, number)| number.clone()).unwrap_or_default();
                (Entry::Undone, number.clone(), done(&number))
            }
            (What::Ask, Some((_, number))) => (Entry::Again, number.clone(), Answer::Known { done: true }),
            // "Nothing was paid" must stay true: the saga goes back because of it. So that is written down as well, and a
            // payment that was under way meanwhile is refused by its fence.
            (What::Ask, None) => (Entry::Asked, String::new(), Answer::Known { done: false }),
        }
    }

    /// What a line makes of its trip.
    fn learn(&mut self, line: &Line) {
        let trip = self.trips.entry(line.trip.clone()).or_default();
        trip.fence = trip.fence.max(line.fence);
        match line.entry {
            Entry::Done => {
                trip.standing = Some((line.key.clone(), line.number.clone()));
                self.made += 1;
            }
            Entry::Undone => {
                trip.standing = None;
                trip.undone = Some(line.key.clone());
            }
            Entry::Asked | Entry::Again | Entry::Late => {}
        }
    }
}

/// All lines of a ledger, and the bytes that they take. There is none where nothing was written yet.
pub fn read(path: &Path) -> Result<(Vec<Line>, u64)> {
    let mut text = String::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_string(&mut text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(format!("{} can't be read: {error}", path.display()).into()),
    };
    let length = text.rfind('\n').map_or(0, |end| end + 1);
    let lines = text.get(..length).unwrap_or_default().lines().map(serde_json::from_str);
    let lines = lines
        .collect::<Result<Vec<Line>, _>>()
        .map_err(|error| format!("{} has a line that is none of a ledger: {error}", path.display()))?;
    Ok((lines, length as u64))
}
