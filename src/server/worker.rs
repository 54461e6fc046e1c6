//! The thread that owns the engine: requests come in over a channel, and go with a channel for
//! their events.
//!
//! Whoever drops the receiving end of that channel, since the client has gone, cancels the request: before its next step
//! the thread looks which receivers are still there.

use super::metrics::Metrics;
use oxgpt_engine::backend::DeviceError;
use oxgpt_engine::engine::{self, Engine, EngineError, Pooling};
use oxgpt_engine::kv::PrefixUse;
use oxgpt_engine::sampler::TokenLogprobs;
use oxgpt_engine::sequence::{Event, FinishReason, GenerationError, Request, SequenceId};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

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
    orders: mpsc::Sender<Order>,
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

/// What the thread is asked for.
enum Order {
    Answer(Submission),
    Embed(Texts),
}

struct Submission {
    request: Request,
    client: Client,
}

/// The vector of a text.
pub type Embedding = Vec<f32>;

/// The vectors of texts, or why there are none.
pub type Embeddings = oneshot::Receiver<Result<Vec<Embedding>, EngineError>>;

/// Texts to embed, one after another.
struct Texts {
    left: VecDeque<engine::Embedding>,
    done: Vec<Embedding>,
    reply: oneshot::Sender<Result<Vec<Embedding>, EngineError>>,
    _seat: Seat,
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
        let thread = Thread { orders: receiver, metrics: Arc::clone(&metrics) };
        (Worker { orders: sender, seats: Arc::new(seats), metrics }, thread)
    }

    /// The most sequences that one call can submit.
    pub fn limit(&self) -> usize {
        self.seats.limit
    }

    /// Takes seats for so many sequences, all or none.
    fn take_seats(&self, count: usize) -> Result<(), Busy> {
        let Seats { taken, sequences, limit } = &*self.seats;
        let take = |taken: usize| (taken + count <= *limit).then_some(taken + count);
        let Err(taken) = taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) else {
            return Ok(());
        };
        // Those who wait leave at the rate at which sequences end.
        let ahead = (taken + count - limit) as f64;
        let seconds = self.metrics.mean_run_seconds() * ahead / *sequences as f64;
        let waiting = taken.saturating_sub(*sequences);
        Err(Busy { waiting, retry_after: (seconds.ceil() as u64).clamp(1, 600) })
    }

    /// Takes texts in whose vectors are wanted.
    pub fn embed(&self, texts: Vec<Vec<u32>>, pooling: Pooling) -> Result<Embeddings, Busy> {
        self.take_seats(1)?;
        let (reply, receiver) = oneshot::channel();
        let left = texts.into_iter().map(|tokens| engine::Embedding::new(tokens, pooling));
        let _seat = Seat(Arc::clone(&self.seats));
        let texts = Texts { left: left.collect(), done: Vec::new(), reply, _seat };
        // Without the thread the reply is dropped, and the receiver says so.
        let _ = self.orders.send(Order::Embed(texts));
        Ok(receiver)
    }

    /// Takes requests in, all or none.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Submitted, Busy> {
        let count = requests.len();
        self.take_seats(count)?;
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
            let _ = self.orders.send(Order::Answer(Submission { request, client }));
        }
        Ok(Submitted { updates, cancels })
    }
}

/// The receiving end of a [`Worker`].
pub struct Thread {
    orders: mpsc::Receiver<Order>,
    metrics: Arc<Metrics>,
}

impl Thread {
    /// Works until the [`Worker`] is dropped.
    ///
    /// # Errors
    /// When the device failed, on which nothing runs any more.
    pub fn run(self, mut engine: Engine) -> Result<(), DeviceError> {
        let mut live: HashMap<SequenceId, Live> = HashMap::new();
        let mut texts: VecDeque<Texts> = VecDeque::new();
        loop {
            let mut start = Instant::now();
            loop {
                let is_idle = engine.is_idle() && texts.is_empty();
                let order = match self.orders.try_recv() {
                    Ok(order) => order,
                    Err(_) if !is_idle => break,
                    Err(_) => match self.orders.recv() {
                        Ok(order) => {
                            start = Instant::now();
                            order
                        }
                        Err(_) => return Ok(()),
                    },
                };
                match order {
                    Order::Answer(submission) => submit(&mut engine, &mut live, submission),
                    Order::Embed(more) => texts.push_back(more),
                }
            }
            live.retain(|id, request| {
                let is_wanted = !request.client.is_gone();
                if !is_wanted {
                    engine.cancel(*id);
                    self.metrics.finished.cancelled.add(1);
                }
                is_wanted
            });
            // A chunk of a text, then a step for the answers.
            if let Some(first) = texts.pop_front() {
                texts.extend(advance(&mut engine, first));
            }
            let mut failure = None;
            for event in engine.step() {
                if let Event::Failed { error: GenerationError::Device(error), .. } = &event {
                    failure = Some(error.clone());
                }
                self.tell(event, &mut live);
            }
            if let Some(error) = failure {
                return Err(error);
            }
            let waiting = engine.waiting();
            self.metrics.preemptions.set(engine.preemptions());
            self.metrics.gauges(live.len() - waiting, waiting, engine.kv_usage());
            self.metrics.stepped(start.elapsed().as_secs_f64(), engine.device_seconds());
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

/// Computes the next chunk of a text; gives the texts back if there is more to do.
fn advance(engine: &mut Engine, mut texts: Texts) -> Option<Texts> {
    if texts.reply.is_closed() {
        texts.left.into_iter().for_each(|text| engine.give_up(text));
        return None;
    }
    if let Some(text) = texts.left.front_mut() {
        match engine.embed(text) {
            Ok(None) => return Some(texts),
            Ok(Some(vector)) => {
                texts.done.push(vector);
                texts.left.pop_front();
            }
            Err(error) => {
                let _ = texts.reply.send(Err(error));
                return None;
            }
        }
    }
    if texts.left.is_empty() {
        let _ = texts.reply.send(Ok(texts.done));
        return None;
    }
    Some(texts)
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
