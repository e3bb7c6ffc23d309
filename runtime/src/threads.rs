//! A fork-join pool for work of microseconds: workers spin for a while before they sleep, tiles are dealt out by a counter.
//!
//! Decoding launches hundreds of kernels a token; a general pool's wake-up would cost more than many of them.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Turns of the spin loop before a worker sleeps: some 50 microseconds.
const SPINS: u32 = 4000;

/// Called with (begin, end, worker).
type Work<'a> = &'a (dyn Fn(i64, i64, usize) + Sync);

struct Shared {
    /// The current job; valid while `generation` is odd or workers are busy.
    work: Mutex<Option<Work<'static>>>,
    /// Counts jobs: a worker that sees a new number takes part.
    generation: AtomicUsize,
    tiles: AtomicI64,
    chunk: AtomicI64,
    next: AtomicI64,
    /// Workers that have not finished the current job.
    busy: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    job: Mutex<()>,
}

impl Pool {
    /// `threads` in all, the caller included.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            work: Mutex::new(None),
            generation: AtomicUsize::new(0),
            tiles: AtomicI64::new(0),
            chunk: AtomicI64::new(1),
            next: AtomicI64::new(0),
            busy: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut workers = vec![];
        for worker in 1..threads.max(1) {
            let shared = shared.clone();
            // Without the system's leave for another thread there is one less.
            if let Ok(handle) = std::thread::Builder::new()
                .name(format!("loopc-{worker}"))
                .spawn(move || shared.serve(worker))
            {
                workers.push(handle);
            }
        }
        Pool {
            shared,
            workers,
            job: Mutex::new(()),
        }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work` over 0..tiles in pieces; returns when all are done.
    pub fn run(&self, tiles: i64, work: Work) {
        if tiles <= 1 || self.workers.is_empty() {
            if tiles > 0 {
                work(0, tiles, 0);
            }
            return;
        }
        let _job = self.job.lock().unwrap_or_else(|p| p.into_inner());
        let s = &*self.shared;
        // Four pieces a thread even out what is uneven.
        let chunk = (tiles / (4 * self.threads() as i64)).max(1);
        s.tiles.store(tiles, Ordering::Relaxed);
        s.chunk.store(chunk, Ordering::Relaxed);
        s.next.store(0, Ordering::Relaxed);
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        // The borrow outlives the job: this function returns only when no worker is busy.
        let forever: Work<'static> = unsafe { std::mem::transmute(work) };
        *s.work.lock().unwrap_or_else(|p| p.into_inner()) = Some(forever);
        s.generation.fetch_add(1, Ordering::SeqCst);
        if s.sleepers.load(Ordering::SeqCst) > 0 {
            drop(s.lock.lock());
            s.wake.notify_all();
        }
        s.take_part(work, 0);
        while s.busy.load(Ordering::Acquire) != 0 {
            std::hint::spin_loop();
        }
    }
}

impl Shared {
    fn take_part(&self, work: Work, worker: usize) {
        let (tiles, chunk) = (self.tiles.load(Ordering::Relaxed), self.chunk.load(Ordering::Relaxed));
        loop {
            let begin = self.next.fetch_add(chunk, Ordering::Relaxed);
            if begin >= tiles {
                return;
            }
            work(begin, (begin + chunk).min(tiles), worker);
        }
    }

    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.generation.load(Ordering::SeqCst) == seen {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                    continue;
                }
                let guard = self.lock.lock().unwrap_or_else(|p| p.into_inner());
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                let idle =
                    |_: &mut ()| self.generation.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst);
                drop(self.wake.wait_while(guard, idle));
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            seen = self.generation.load(Ordering::SeqCst);
            let work = *self.work.lock().unwrap_or_else(|p| p.into_inner());
            if let Some(work) = work {
                self.take_part(work, worker);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
