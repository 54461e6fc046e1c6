//! The thread that owns the engine: requests come in over a channel, and go with a channel for
//! their events.
//!
//! Whoever drops the receiving end of that channel, since the client has gone, cancels the request: before its next step
//! the thread looks which receivers are still there.

use super::metrics::Metrics;
use oxgpt_engine::engine::{Engine, EngineError};
use oxgpt_engine::kv::PrefixUse;
use oxgpt_engine::sampler::TokenLogprobs;
use oxgpt_engine::sequence::{Event, FinishReason, GenerationError, Request, SequenceId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What becomes of a request. After the last three nothing follows.
#[derive(Debug)]
pub enum Update {
    /// It runs.
    Started(PrefixUse),
    /// A token was chosen.
    Token(u32, Option<TokenLogprobs>),
    /// It is over.
    Finished(FinishReason),
    /// It cannot go on.
    Failed(GenerationError),
    /// The engine does not take it.
    Rejected(EngineError),
}

/// No room for more requests.
#[derive(Debug)]
pub struct Busy {
    /// Requests that wait already.
    pub waiting: usize,
    /// Seconds until there should be room.
    pub retry_after: u64,
}

/// Where requests go in.
#[derive(Debug)]
pub struct Worker {
    submissions: mpsc::Sender<Submission>,
    seats: Arc<Seats>,
    metrics: Arc<Metrics>,
}

/// The sequences that may be here at once, waiting or running.
#[derive(Debug)]
struct Seats {
    taken: AtomicUsize,
    sequences: usize,
    limit: usize,
}

/// A place among the [`Seats`], given back when it is dropped.
struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Requests that were submitted together.
#[derive(Debug)]
pub struct Submitted {
    /// What becomes of them, with their place among the requests.
    pub updates: UnboundedReceiver<(usize, Update)>,
    /// Says of each that no more is wanted.
    pub cancels: Vec<Arc<AtomicBool>>,
}

struct Submission {
    request: Request,
    client: Client,
}

/// Who wants a request answered.
struct Client {
    updates: UnboundedSender<(usize, Update)>,
    /// The place of the request among those submitted together.
    place: usize,
    is_cancelled: Arc<AtomicBool>,
    since: Instant,
    prompt_tokens: usize,
    _seat: Seat,
}

impl Client {
    fn is_gone(&self) -> bool {
        self.updates.is_closed() || self.is_cancelled.load(Ordering::Relaxed)
    }

    fn tell(&self, update: Update) {
        // Who has gone is noticed before the next step.
        let _ = self.updates.send((self.place, update));
    }
}

/// A request that the engine works on.
struct Live {
    client: Client,
    started: Option<Instant>,
    last_token: Option<Instant>,
}

impl Worker {
    /// A worker for at most `sequences` running and `queue` waiting sequences, and what [`Thread::run`] needs.
    pub fn new(sequences: usize, queue: usize, metrics: Arc<Metrics>) -> (Self, Thread) {
        let (sender, receiver) = mpsc::channel();
        let seats = Seats { taken: AtomicUsize::new(0), sequences, limit: sequences + queue };
        let thread = Thread { submissions: receiver, metrics: Arc::clone(&metrics) };
        (Worker { submissions: sender, seats: Arc::new(seats), metrics }, thread)
    }

    /// The most sequences that one call can submit.
    pub fn limit(&self) -> usize {
        self.seats.limit
    }

    /// Takes requests in, all or none.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Submitted, Busy> {
        let count = requests.len();
        let Seats { taken, sequences, limit } = &*self.seats;
        let take = |taken: usize| (taken + count <= *limit).then_some(taken + count);
        if let Err(taken) = taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            let waiting = taken.saturating_sub(*sequences);
            // Those who wait leave at the rate at which sequences end.
            let ahead = (taken + count - limit) as f64;
            let seconds = self.metrics.mean_run_seconds() * ahead / *sequences as f64;
            return Err(Busy { waiting, retry_after: (seconds.ceil() as u64).clamp(1, 600) });
        }
        let (sender, updates) = unbounded_channel();
        let mut cancels = Vec::with_capacity(count);
        for (place, request) in requests.into_iter().enumerate() {
            let is_cancelled = Arc::new(AtomicBool::new(false));
            cancels.push(Arc::clone(&is_cancelled));
            let client = Client {
                updates: sender.clone(),
                place,
                is_cancelled,
                since: Instant::now(),
                prompt_tokens: request.tokens.len(),
                _seat: Seat(Arc::clone(&self.seats)),
            };
            // Without the thread the channel is closed, and the receiver says so.
            let _ = self.submissions.send(Submission { request, client });
        }
        Ok(Submitted { updates, cancels })
    }
}

/// The receiving end of a [`Worker`].
pub struct Thread {
    submissions: mpsc::Receiver<Submission>,
    metrics: Arc<Metrics>,
}

impl Thread {
    /// Works until the [`Worker`] is dropped.
    pub fn run(self, mut engine: Engine) {
        let mut live: HashMap<SequenceId, Live> = HashMap::new();
        loop {
            if engine.is_idle() {
                let Ok(submission) = self.submissions.recv() else { return };
                submit(&mut engine, &mut live, submission);
            }
            while let Ok(submission) = self.submissions.try_recv() {
                submit(&mut engine, &mut live, submission);
            }
            live.retain(|id, request| {
                let is_wanted = !request.client.is_gone();
                if !is_wanted {
                    engine.cancel(*id);
                    self.metrics.finished.cancelled.add(1);
                }
                is_wanted
            });
            for event in engine.step() {
                self.tell(event, &mut live);
            }
            let waiting = engine.waiting();
            self.metrics.gauges(live.len() - waiting, waiting, engine.kv_usage());
        }
    }

    fn tell(&self, event: Event, live: &mut HashMap<SequenceId, Live>) {
        let metrics = &self.metrics;
        let now = Instant::now();
        let (id, update) = match event {
            Event::Started { sequence, prefix } => (sequence, Update::Started(prefix)),
            Event::Token { sequence, token, logprobs } => {
                (sequence, Update::Token(token, logprobs))
            }
            Event::Finished { sequence, reason } => (sequence, Update::Finished(reason)),
            Event::Failed { sequence, error } => (sequence, Update::Failed(error)),
        };
        let Some(request) = live.get_mut(&id) else { return };
        let mut is_over = false;
        match &update {
            Update::Started(prefix) => {
                request.started = Some(now);
                metrics.queue_seconds.observe((now - request.client.since).as_secs_f64());
                metrics.prompt_tokens.add(request.client.prompt_tokens as u64);
                metrics.prefix_hits.add(prefix.cached as u64);
            }
            Update::Token(..) => {
                metrics.generated_tokens.add(1);
                match request.last_token.replace(now) {
                    None => metrics
                        .first_token_seconds
                        .observe((now - request.client.since).as_secs_f64()),
                    Some(last) => metrics.next_token_seconds.observe((now - last).as_secs_f64()),
                }
            }
            Update::Finished(reason) => {
                is_over = true;
                match reason {
                    FinishReason::Stop => metrics.finished.stop.add(1),
                    FinishReason::Length => metrics.finished.length.add(1),
                }
                metrics.request_seconds.observe((now - request.client.since).as_secs_f64());
                let started = request.started.unwrap_or(request.client.since);
                metrics.ran((now - started).as_secs_f64());
            }
            Update::Failed(_) | Update::Rejected(_) => {
                is_over = true;
                metrics.finished.failed.add(1);
            }
        }
        request.client.tell(update);
        if is_over {
            live.remove(&id);
        }
    }
}

fn submit(engine: &mut Engine, live: &mut HashMap<SequenceId, Live>, submission: Submission) {
    let Submission { request, client } = submission;
    match engine.submit(request) {
        Ok(id) => {
            live.insert(id, Live { client, started: None, last_token: None });
        }
        Err(error) => client.tell(Update::Rejected(error)),
    }
}
