//! A call's launches with everything decided, and the three ways to run them: as they are, one by one, timed.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Context;
use super::geometry::Parameters;
use super::module::{Event, Function, Grid, Map, encode};
use crate::engine::profile::{Ran, Recorder};
use crate::error::RuntimeError;

/// One function to run.
pub struct Ready {
    pub ran: Ran,
    function: Function,
    grid: Grid,
    pointers: Vec<u64>,
    symbols: [i32; 4],
    maps: Vec<Map>,
}

impl Ready {
    pub fn new(ran: Ran, function: Function, grid: Grid, parameters: Parameters) -> Result<Ready, RuntimeError> {
        let maps = parameters.maps.iter().map(|map| {
            let place = || format!("function `{}`: {map:?}", ran.function);
            encode(map).map_err(|e| e.at(&place()))
        });
        let maps = maps.collect::<Result<_, _>>()?;
        Ok(Ready {
            ran,
            function,
            grid,
            maps,
            pointers: parameters.pointers,
            symbols: parameters.symbols,
        })
    }

    fn issue(&self, context: &Context) -> Result<(), RuntimeError> {
        fn value<T>(x: &T) -> *mut c_void {
            x as *const T as *mut c_void
        }
        let mut parameters: Vec<*mut c_void> = self.pointers.iter().map(value).collect();
        parameters.extend(self.symbols.iter().map(value));
        parameters.extend(self.maps.iter().map(value));
        // The driver copies the values before it returns.
        unsafe { context.launch(self.function, &self.grid, &mut parameters) }
            .map_err(|e| e.at(&format!("function `{}`, {:?}", self.ran.function, self.grid)))
    }
}

pub fn issue_all(context: &Context, launches: &[Ready]) -> Result<(), RuntimeError> {
    launches.iter().try_for_each(|l| l.issue(context))
}

/// Waits for each: an error is its own.
pub fn one_by_one(context: &Context, launches: &[Ready]) -> Result<(), RuntimeError> {
    for l in launches {
        l.issue(context)?;
        let place = || format!("function `{}`, {:?}", l.ran.function, l.grid);
        context.wait().map_err(|e| e.at(&place()))?;
    }
    Ok(())
}

/// Runs them and notes how long each took: from the end of the one before to its own end, so that the times add up to the call's.
pub fn timed(
    context: &Arc<Context>,
    launches: &[Ready],
    events: &mut Vec<Event>,
    entry: &str,
    recorder: &mut Recorder,
) -> Result<(), RuntimeError> {
    while events.len() <= launches.len() {
        events.push(Event::new(context)?);
    }
    let all = |record: &dyn Fn(&Event) -> Result<(), RuntimeError>| {
        record(&events[0])?;
        for (l, event) in launches.iter().zip(&events[1..]) {
            l.issue(context)?;
            record(event)?;
        }
        Ok(())
    };
    // In a graph the host does not stand between short kernels. Where a driver does not record these events, it does.
    let graph = context.capture(|| all(&|e| Ok(e.record_in_graph()?)));
    let start = Instant::now();
    match &graph {
        Ok(graph) => graph.launch()?,
        Err(_) => all(&|e| Ok(e.record()?))?,
    }
    context.wait()?;
    let mut at = start;
    for (l, pair) in launches.iter().zip(events.windows(2)) {
        let time = Duration::from_secs_f64(pair[1].since(&pair[0])?.max(0.0));
        recorder.note(entry, &l.ran, at, time);
        at += time;
    }
    Ok(())
}
