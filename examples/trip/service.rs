//! A service: flights, hotels or payments. A process of its own that knows nothing of kvorum, and fails as services do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::lock::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::Result;
use crate::args::Args;
use crate::ledger::{Broken, Ledger};
use crate::wire::{Answer, Request, What, read_line, write_line};

/// How late something late is: later than a worker waits, and perhaps later than the attempt's lease.
pub const LATE: std::ops::Range<Duration> = Duration::from_millis(1_200)..Duration::from_millis(3_500);

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is done and answered.
    Well,
    /// It is refused, for good: no seat is left. The saga goes back.
    Refuse,
    /// It fails before anything is done. Another attempt may succeed.
    FailBefore,
    /// It is done, and then the connection breaks: whoever called does not know.
    BreakAfter,
    /// It is done, and answered too late.
    AnswerLate,
    /// It is done too late: when the caller has given up, and something else may have been done about it.
    DoLate,
}

const FAILURES: [Fate; 5] =
    [Fate::Refuse, Fate::FailBefore, Fate::BreakAfter, Fate::AnswerLate, Fate::DoLate];

struct Service {
    name: String,
    ledger: Mutex<Ledger>,
    fail_percent: u32,
    random: Mutex<StdRng>,
}

/// `trip service NAME --listen ADDRESS --ledger FILE`.
pub async fn run(mut args: Args) -> Result<()> {
    let name = args.word().ok_or("say which service: flights, hotels or payments")?;
    let listen = args.needed("--listen")?;
    let path = PathBuf::from(args.needed("--ledger")?);
    let fail_percent = args.number("--fail-percent", 0)?;
    let seed = args.number("--seed", rand::random())?;
    args.end()?;
    let ledger = Ledger::open(&path, Broken::from_env(&name))?;
    let service = Arc::new(Service {
        name,
        ledger: Mutex::new(ledger),
        fail_percent,
        random: Mutex::new(StdRng::seed_from_u64(seed)),
    });
    let listener = bind(&listen).await?;
    println!("{} listens on {}", service.name, listener.local_addr()?);
    let serving = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(service.clone().serve(stream))),
                Err(error) => {
                    eprintln!("no connection can be taken now: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = serving => Ok(()),
        () = crate::crew::stdin_ended() => Ok(()),
    }
}

/// Listens. The address may be that of a process that was killed just now.
async fn bind(address: &str) -> Result<TcpListener> {
    let give_up_at = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if Instant::now() >= give_up_at => {
                return Err(format!("{address} can't be listened on: {error}").into());
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Service {
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let request: Request = match read_line(&mut stream).await {
            Ok(Some(request)) => request,
            // Somebody who only looked whether it listens, or was killed.
            Ok(None) => return,
            Err(error) => return eprintln!("a call makes no sense: {error}"),
        };
        if let Some(answer) = self.answer(&request).await
            && let Err(error) = write_line(&mut stream, &answer).await
        {
            eprintln!("{} of {} could not be answered: {error}", request.key, request.trip);
        }
    }

    /// Does what is asked, or not. `None` breaks the connection.
    async fn answer(&self, request: &Request) -> Option<Answer> {
        let (fate, late) = self.fate(request.what).await;
        match fate {
            Fate::FailBefore => return Some(Answer::Busy),
            // What is booked can't be refused any more: that would be a lie, on which the saga would build.
            Fate::Refuse if !self.ledger.lock().await.stands(&request.trip) => {
                return Some(Answer::Refused { why: format!("{} has nothing for that trip", self.name) });
            }
            Fate::DoLate => sleep(late).await,
            Fate::Well | Fate::Refuse | Fate::BreakAfter | Fate::AnswerLate => {}
        }
        let done = {
            let mut ledger = self.ledger.lock().await;
            // Waits for the disk.
            tokio::task::block_in_place(|| ledger.take(request))
        };
        let answer = match done {
            Ok(answer) => answer,
            Err(error) => {
                // What can't be written down can't be done; the next process may have more luck.
                eprintln!("the ledger can't be written: {error}");
                std::process::exit(1);
            }
        };
        match fate {
            Fate::BreakAfter => None,
            Fate::AnswerLate => {
                sleep(late).await;
                Some(answer)
            }
            _ => Some(answer),
        }
    }

    async fn fate(&self, what: What) -> (Fate, Duration) {
        let mut random = self.random.lock().await;
        let late = random.random_range(LATE);
        if random.random_range(0..100) >= self.fail_percent {
            return (Fate::Well, late);
        }
        match FAILURES[random.random_range(0..FAILURES.len())] {
            // A cancellation or a question is never refused, it only may take some attempts.
            Fate::Refuse if what != What::Do => (Fate::FailBefore, late),
            fate => (fate, late),
        }
    }
}
