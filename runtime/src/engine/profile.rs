//! Time by function, summed or span by span. Devices note what they ran; nothing is measured here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What ran: a kernel's function, for these of the entry's launches. A GPU runs some kernels as several functions, and some launches as
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub kernel: String,
    pub function: String,
    pub launches: Range<usize>,
}

impl Ran {
    /// A kernel that is one function, for one launch.
    pub fn whole(kernel: &str, launch: usize) -> Ran {
        Ran {
            kernel: kernel.to_string(),
            function: kernel.to_string(),
            launches: launch..launch + 1,
        }
    }
}

/// One function's runs for a kernel in an entry: where it stands first, how often it ran, for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub entry: String,
    pub ran: Ran,
    pub count: u64,
    pub time: Duration,
}

/// One function's run on the device's clock, since the trace began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub entry: String,
    pub function: String,
    pub start: Duration,
    pub time: Duration,
}

/// What is being recorded; by default nothing.
#[derive(Default)]
pub struct Recorder {
    /// By entry, kernel and function: launches that run as one are functions of other launches, too.
    rows: Option<BTreeMap<[String; 3], Row>>,
    trace: Option<(Instant, Vec<Span>)>,
}

impl Recorder {
    pub fn is_on(&self) -> bool {
        self.rows.is_some() || self.trace.is_some()
    }

    pub fn note(&mut self, entry: &str, ran: &Ran, start: Instant, time: Duration) {
        if let Some(rows) = &mut self.rows {
            let key = [entry.to_string(), ran.kernel.clone(), ran.function.clone()];
            let row = rows.entry(key).or_insert_with(|| Row {
                entry: entry.to_string(),
                ran: ran.clone(),
                count: 0,
                time: Duration::ZERO,
            });
            row.count += 1;
            row.time += time;
        }
        if let Some((origin, spans)) = &mut self.trace {
            spans.push(Span {
                entry: entry.to_string(),
                function: ran.function.clone(),
                start: start.saturating_duration_since(*origin),
                time,
            });
        }
    }

    /// See `Engine::profile`.
    pub fn profile(&mut self, on: bool) -> Vec<Row> {
        let counted = std::mem::replace(&mut self.rows, on.then(BTreeMap::new));
        let mut rows: Vec<_> = counted.unwrap_or_default().into_values().collect();
        rows.sort_by_key(|r| std::cmp::Reverse(r.time));
        rows
    }

    /// See `Engine::trace`.
    pub fn trace(&mut self, on: bool) -> Vec<Span> {
        let traced = std::mem::replace(&mut self.trace, on.then(|| (Instant::now(), vec![])));
        traced.map_or(vec![], |(_, spans)| spans)
    }
}
