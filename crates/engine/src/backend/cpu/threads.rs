//! Threads that compute one operation together, ready within a fraction of a microsecond.
//!
//! A token of a small model is some hundred operations of a few dozen microseconds each; waking a sleeping thread for
//! each of them would cost as much as the work. So between two jobs the workers keep looking for the next one: first
//! with pauses, then giving their core to whoever wants it, and after `AWAKE` they sleep. An engine without
//! requests uses no processor time.
//!
//! A job is a closure and a number of pieces. The caller takes pieces too, and never waits for a worker that has not
//! yet begun: where there are fewer cores than threads, it computes alone rather than wait for its turn.
//!
//! This is the one place of the backend, beside the vector instructions, with `unsafe` code: the closure lies on the
//! caller's stack, and parts of one slice are written by several threads.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it sleeps: longer than the engine takes between two tokens.
const AWAKE: Duration = Duration::from_millis(2);

/// Pauses (of 20 to 60 ns) before a waiting thread offers its core to others.
const PAUSES: usize = 1000;

/// A fixed number of threads: the one that calls, and workers.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A whole cache line (and the one that is fetched along with it), so that threads which write to what is inside do
/// not slow down those that read what lies beside it.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Whether there is a job, and who is at it; see [`State`].
    state: Line<AtomicU64>,
    /// The next piece that nobody has taken.
    next: Line<AtomicUsize>,
    /// Written by the caller while no worker is inside, read by workers that are.
    job: UnsafeCell<Job>,
    /// What a worker panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Pauses before a waiting thread yields; none if there are more threads than cores.
    pauses: usize,
    /// Workers that sleep, or are about to.
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is only written by `Threads::run`, which has `Threads` for itself and waits until no worker is inside;
// workers read it only between `enter` and `leave`. What its pointer leads to is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A closure without its type and lifetime.
#[derive(Clone, Copy)]
struct Job {
    pieces: usize,
    work: *const (),
    /// Calls `work` for one piece.
    ///
    /// Safe to call while the closure lives.
    call: unsafe fn(*const (), usize),
}

/// The number of the latest job, whether it may be joined, and how many workers are inside, in one word: nobody
/// can enter a job that its caller has closed.
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    const INSIDE: u64 = 0xFFFF;
    const OPEN: u64 = 1 << 16;
    const STOP: u64 = 1 << 17;
    const JOB: u64 = 1 << 18;

    fn inside(self) -> u64 {
        self.0 & Self::INSIDE
    }

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn must_stop(self) -> bool {
        self.0 & Self::STOP != 0
    }

    fn job(self) -> u64 {
        self.0 / Self::JOB
    }
}

impl Threads {
    /// `count` threads, the caller's included; at least one.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(count: usize) -> io::Result<Self> {
        assert!(count as u64 <= State::INSIDE, "the workers can be counted");
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { pieces: 0, work: std::ptr::null(), call: nothing }),
            panic: Mutex::new(None),
            pauses: if count <= cores { PAUSES } else { 0 },
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        // If one cannot be started, dropping this ends the others.
        let mut threads = Threads { shared, workers: Vec::new() };
        for index in 1..count {
            let shared = Arc::clone(&threads.shared);
            let worker = thread::Builder::new().name(format!("oxgpt-cpu-{index}"));
            threads.workers.push(worker.spawn(move || shared.serve())?);
        }
        Ok(threads)
    }

    /// How many threads there are, the caller's included.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each index below `pieces`, on all threads, and returns when all calls have. A panic of
    /// one becomes the caller's.
    ///
    /// Which thread gets which piece, and when, is not determined: pieces must not depend on each other.
    pub fn for_each<F: Fn(usize) + Sync>(&mut self, pieces: usize, work: F) {
        if pieces <= 1 || self.workers.is_empty() {
            (0..pieces).for_each(work);
            return;
        }
        /// # Safety
        /// `work` must point to a live `F`.
        unsafe fn call<F: Fn(usize) + Sync>(work: *const (), piece: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*work.cast::<F>())(piece) }
        }
        self.run(Job { pieces, work: (&raw const work).cast(), call: call::<F> });
    }

    /// [`for_each`](Self::for_each) over the chunks of `data`, each `length` elements long but the last: `work` gets
    /// the index of a chunk and the chunk.
    pub fn for_each_chunk<T: Send, F>(&mut self, data: &mut [T], length: usize, work: F)
    where
        F: Fn(usize, &mut [T]) + Sync,
    {
        let total = data.len();
        let data = SharedSlice(data.as_mut_ptr());
        self.for_each(total.div_ceil(length), |index| {
            let first = index * length;
            // SAFETY: chunks lie inside the slice and apart, and each index is given once.
            work(index, unsafe { data.part(first..total.min(first + length)) });
        });
    }

    /// [`for_each`](Self::for_each) over parts of `data` that follow one another, the first from element 0 and each up
    /// to its entry of `ends`: `work` gets the index of a part and the part.
    ///
    /// # Panics
    /// When `ends` do not ascend, or the last is beyond `data`.
    pub fn for_each_part<T: Send, F>(&mut self, data: &mut [T], ends: &[usize], work: F)
    where
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(ends.is_sorted(), "parts follow one another");
        assert!(ends.last().is_none_or(|end| *end <= data.len()), "parts lie inside the slice");
        let data = SharedSlice(data.as_mut_ptr());
        self.for_each(ends.len(), |index| {
            let first = if index == 0 { 0 } else { ends[index - 1] };
            // SAFETY: parts lie inside the slice and apart, as asserted, and each index is given once.
            work(index, unsafe { data.part(first..ends[index]) });
        });
    }

    fn run(&mut self, job: Job) {
        let shared = &*self.shared;
        // SAFETY: no worker is inside: the last job was waited for, and `&mut self` excludes another.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        shared.open();
        let result = catch_unwind(AssertUnwindSafe(|| shared.take_pieces(&job)));
        if result.is_err() {
            shared.next.0.store(job.pieces, Ordering::Relaxed);
        }
        // From here on nobody has a pointer to the closure.
        shared.close();
        let panic = lock(&shared.panic).take();
        match (result, panic) {
            (Err(panic), _) | (Ok(()), Some(panic)) => resume_unwind(panic),
            (Ok(()), None) => {}
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(State::STOP, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // It catches every panic, so there is nothing to hear.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// What a worker does all its life.
    fn serve(&self) {
        let mut last = 0;
        loop {
            let state = self.wait_for_another(last);
            if state.must_stop() {
                return;
            }
            last = state.job();
            if self.enter(last) {
                // SAFETY: a worker is inside, so the caller waits before it writes.
                let job = unsafe { *self.job.get() };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_pieces(&job))) {
                    // The others need not begin anything more.
                    self.next.0.store(job.pieces, Ordering::Relaxed);
                    *lock(&self.panic) = Some(panic);
                }
                self.state.0.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn take_pieces(&self, job: &Job) {
        loop {
            let piece = self.next.0.fetch_add(1, Ordering::Relaxed);
            if piece >= job.pieces {
                return;
            }
            // SAFETY: the closure lives until the caller has closed the job and everybody has left it.
            unsafe { (job.call)(job.work, piece) };
        }
    }

    /// Publishes the job that was written.
    fn open(&self) {
        let state = State(self.state.0.load(Ordering::Relaxed));
        // Sequentially consistent, as are the steps of `sleep`: either a worker that goes to sleep sees the job, or
        // its sleep is seen here.
        let next = (state.job() + 1) * State::JOB;
        self.state.0.store(next | State::OPEN, Ordering::SeqCst);
        self.wake_sleepers();
    }

    /// Lets no further worker in, and waits for those inside.
    fn close(&self) {
        let mut state = State(self.state.0.fetch_and(!State::OPEN, Ordering::Acquire));
        let mut pauses = self.pauses;
        while state.inside() > 0 {
            if pauses > 0 {
                pauses -= 1;
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
            state = State(self.state.0.load(Ordering::Acquire));
        }
    }

    /// Whether job `job` could still be joined.
    fn enter(&self, job: u64) -> bool {
        let may_enter =
            |state: u64| (State(state).is_open() && State(state).job() == job).then_some(state + 1);
        self.state.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, may_enter).is_ok()
    }

    /// The state, once it is of another job than `last` or tells to stop.
    fn wait_for_another(&self, last: u64) -> State {
        let is_another = |state: State| state.job() != last || state.must_stop();
        let load = || State(self.state.0.load(Ordering::Acquire));
        for _ in 0..self.pauses {
            if is_another(load()) {
                return load();
            }
            hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < AWAKE {
            if is_another(load()) {
                return load();
            }
            thread::yield_now();
        }
        let mut guard = lock(&self.asleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !is_another(State(self.state.0.load(Ordering::SeqCst))) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        load()
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Whoever holds the lock has not looked at the state yet, or waits already.
            drop(lock(&self.asleep));
            self.wake.notify_all();
        }
    }
}

/// A slice of which threads get parts to write.
struct SharedSlice<T>(*mut T);

// SAFETY: it only hands out parts that do not overlap, as slices of `T: Send`.
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T> SharedSlice<T> {
    /// # Safety
    /// `range` must lie inside the slice, which must be alive, and overlap no other part that is in use.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap: that is the contract")]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Nothing here leaves a lock's data half-written, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nothing(_: *const (), _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn every_piece_is_done_once_by_any_number_of_threads() {
        for count in [1, 2, 3, 8, 33] {
            let mut threads = Threads::new(count).unwrap();
            assert_eq!(threads.count(), count);
            for pieces in [0, 1, 2, 3, 7, 64, 1000] {
                let done: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                threads.for_each(pieces, |piece| {
                    done[piece].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn chunks_and_parts_cover_a_slice() {
        let mut threads = Threads::new(3).unwrap();
        let mut data = vec![0; 1000];
        threads.for_each_chunk(&mut data, 7, |index, chunk| {
            assert_eq!(chunk.len(), if index == 142 { 6 } else { 7 });
            chunk.fill(index);
        });
        assert!((0..1000).all(|i| data[i] == i / 7));
        threads.for_each_chunk(&mut data[..0], 7, |_, _| panic!("there is no chunk"));

        threads.for_each_part(&mut data, &[5, 5, 600, 999], |index, part| {
            assert_eq!(part.len(), [5, 0, 595, 399][index]);
            part.fill(10 + index);
        });
        assert_eq!([data[4], data[5], data[599], data[600], data[998]], [10, 12, 12, 13, 13]);
        assert_eq!(data[999], 142, "beyond the last part");
    }

    #[test]
    #[should_panic(expected = "parts follow one another")]
    fn parts_that_overlap_are_refused() {
        Threads::new(2).unwrap().for_each_part(&mut [0; 9], &[5, 3], |_, _| {});
    }

    /// Thousands of jobs one after another, with breaks in which the workers fall asleep or are about to.
    #[test]
    fn no_job_is_lost_between_looking_and_sleeping() {
        let mut threads = Threads::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        let mut expected = 0;
        for round in 0..3000 {
            threads.for_each(5, |piece| {
                sum.fetch_add(piece, Ordering::Relaxed);
            });
            expected += 10;
            assert_eq!(sum.load(Ordering::Relaxed), expected);
            if round % 100 == 0 {
                thread::sleep(AWAKE * (round / 100 % 3));
            }
        }
    }

    #[test]
    fn all_threads_can_be_at_one_job_and_then_sleep() {
        let mut threads = Threads::new(3).unwrap();
        // Each piece waits for the others, so three threads must be at it.
        let arrived = AtomicUsize::new(0);
        threads.for_each(3, |_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
        });
        // Nothing more to do: both workers fall asleep, sooner or later.
        while threads.shared.sleepers.load(Ordering::SeqCst) < 2 {
            thread::sleep(AWAKE);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_live_on() {
        let mut threads = Threads::new(4).unwrap();
        for culprit in 0..20 {
            let ran = AtomicBool::new(false);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                threads.for_each(20, |piece| {
                    ran.store(true, Ordering::Relaxed);
                    assert_ne!(piece, culprit, "told to");
                });
            }));
            let message = *panic.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("told to"), "{message}");
            assert!(ran.load(Ordering::Relaxed));
            let sum = AtomicUsize::new(0);
            threads.for_each(100, |piece| {
                sum.fetch_add(piece, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4950);
        }
    }
}
