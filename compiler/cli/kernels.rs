//! `--kernels`: time by kernel, beside the least that its operations and bytes can take at the rates of the same run.
//!
//! Operations are those of products and attention, bytes what a kernel must touch once (`ir::plan::count`). A kernel that finds its
//! operands in a cache may take less than its bytes say; launches that run as one are counted as if they handed on through memory.

use std::io::{self, Write};

use ir::Sizes;
use ir::plan::Plan;
use ir::plan::count::Work;
use runtime::engine;

use crate::ceilings::Limits;

/// A kernel's launches in one entry point.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub entry: String,
    pub kernel: String,
    pub launches: u64,
    pub seconds: f64,
    /// Absent where there is no plan to count from: an artefact has none.
    #[serde(flatten)]
    pub least: Option<Least>,
    /// The seconds of each, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<(String, f64)>,
}

/// Of all launches.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Least {
    pub operations: f64,
    pub bytes: f64,
    pub limit_seconds: f64,
    pub limited_by: &'static str,
    pub of_limit: f64,
}

impl Least {
    fn new(work: Work, limits: Limits, seconds: f64) -> Least {
        let (products, memory) = (work.products * limits.operation, work.bytes * limits.byte);
        let limit = products.max(memory);
        Least {
            operations: work.products,
            bytes: work.bytes,
            limit_seconds: limit,
            limited_by: if products > memory { "products" } else { "memory" },
            of_limit: limit / seconds,
        }
    }
}

/// What to count by: an entry point's plan at a call's sizes, and the rates.
pub struct Counted<'a> {
    pub plan: &'a Plan,
    pub sizes: Sizes,
    pub limits: Limits,
}

impl Counted<'_> {
    /// Of one run of a function's kernel.
    fn work(&self, row: &engine::Row) -> Option<Work> {
        let mut sum = Work::default();
        let launches = self.plan.launches.get(row.ran.launches.clone());
        for launch in launches.filter(|_| row.entry == self.plan.entry)? {
            sum += self.plan.kernels[launch.kernel].work(&self.sizes)?;
        }
        Some(sum)
    }
}

/// Functions by entry point and kernel, an entry's dearest first.
pub fn rows(functions: &[engine::Row], counted: Option<&Counted>) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    let mut works: Vec<Option<Work>> = vec![];
    for f in functions {
        let at = rows.iter().position(|r| r.entry == f.entry && r.kernel == f.ran.kernel);
        let at = at.unwrap_or_else(|| {
            rows.push(Row {
                entry: f.entry.clone(),
                kernel: f.ran.kernel.clone(),
                launches: 0,
                seconds: 0.0,
                least: None,
                functions: vec![],
            });
            works.push(counted.and_then(|c| c.work(f)));
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.launches = row.launches.max(f.count);
        row.seconds += f.time.as_secs_f64();
        row.functions.push((f.ran.function.clone(), f.time.as_secs_f64()));
    }
    for (row, work) in rows.iter_mut().zip(works) {
        let all = work.map(|w| w.times(row.launches as f64));
        row.least = all.zip(counted).map(|(w, c)| Least::new(w, c.limits, row.seconds));
        if row.functions.len() == 1 {
            row.functions.clear();
        }
    }
    rows.sort_by(|a, b| a.entry.cmp(&b.entry).then(b.seconds.total_cmp(&a.seconds)));
    rows
}

/// A reader may have seen enough (`| head`): that is an error here, and none of `main`'s.
pub fn print(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    writeln!(
        out,
        "{:44} {:>8} {:>9} {:>8} {:>9} {:>9}  limited by",
        "kernel", "launches", "ms", "us each", "limit ms", "of limit"
    )?;
    let ms = |seconds: f64| format!("{:.3}", 1e3 * seconds);
    let mut line = |name: &str, launches: u64, seconds: f64, least: Option<(f64, &str)>| {
        let (limit, share, by) = match least {
            Some((limit, by)) => (ms(limit), format!("{:.0}%", 100.0 * limit / seconds), by),
            None => Default::default(),
        };
        let each = 1e6 * seconds / launches.max(1) as f64;
        let text = format!(
            "{name:44} {launches:>8} {:>9} {each:>8.1} {limit:>9} {share:>9}  {by}",
            ms(seconds)
        );
        writeln!(out, "{}", text.trim_end())
    };
    let mut entries: Vec<&str> = rows.iter().map(|r| r.entry.as_str()).collect();
    entries.dedup();
    for entry in entries {
        let of = || rows.iter().filter(move |r| r.entry == entry);
        let limits: Option<f64> = of().map(|r| r.least.as_ref().map(|l| l.limit_seconds)).sum();
        let (launches, seconds) = (of().map(|r| r.launches).sum(), of().map(|r| r.seconds).sum());
        line(entry, launches, seconds, limits.map(|l| (l, "")))?;
        for r in of() {
            let least = r.least.as_ref().map(|l| (l.limit_seconds, l.limited_by));
            line(&format!("  {}", r.kernel), r.launches, r.seconds, least)?;
            for (function, seconds) in &r.functions {
                line(&format!("    {function}"), r.launches, *seconds, None)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ir::plan::{Arg, Kernel, Launch};
    use ir::{DType, Size};

    use super::*;

    fn ran(kernel: &str, function: &str, launches: std::ops::Range<usize>, count: u64, us: u64) -> engine::Row {
        engine::Row {
            entry: "e".to_string(),
            ran: engine::Ran {
                kernel: kernel.to_string(),
                function: function.to_string(),
                launches,
            },
            count,
            time: Duration::from_micros(us),
        }
    }

    /// Reads n f32 numbers.
    fn reader(n: i64) -> Kernel {
        let load = ir::plan::Expr::Load(ir::plan::Access {
            arg: 0,
            offset: Size::from(0),
            strides: vec![Size::from(0), Size::from(1)],
            indirect: None,
        });
        Kernel {
            name: format!("r{n}"),
            args: vec![Arg {
                dtype: DType::F32,
                written: false,
            }],
            outer: vec![Size::from(1)],
            ordered: 0,
            panels: false,
            cols: Size::from(n),
            contraction: None,
            sweep: None,
            sweep_gradient: None,
            exprs: vec![load],
            stages: vec![],
        }
    }

    #[test]
    fn functions_add_up_and_joined_launches_too() {
        let launch = |kernel| Launch { kernel, args: vec![0] };
        let plan = Plan {
            entry: "e".to_string(),
            buffers: vec![],
            kernels: vec![reader(100), reader(1000)],
            launches: vec![launch(0), launch(1), launch(1), launch(0)],
        };
        let counted = Counted {
            plan: &plan,
            sizes: Sizes::new(),
            limits: Limits {
                operation: 1e-12,
                byte: 1e-9,
            },
        };
        let functions = [
            ran("both", "both", 2..4, 1, 8),
            ran("r100", "r100_a", 0..1, 3, 6),
            ran("r100", "r100_b", 0..1, 3, 6),
            // The same function again, for launches that run as one.
            ran("both", "r100_a", 2..4, 1, 2),
        ];
        let rows = rows(&functions, Some(&counted));
        let told: Vec<_> = rows
            .iter()
            .map(|r| {
                (
                    r.kernel.as_str(),
                    r.launches,
                    r.functions.len(),
                    r.least.clone().unwrap(),
                )
            })
            .collect();
        let [(first, n, parts, a), (second, m, whole, b)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((*first, *n, *parts, a.bytes), ("r100", 3, 2, 1200.0));
        assert_eq!((*second, *m, *whole, b.bytes), ("both", 1, 2, 4400.0));
        assert!(
            (a.of_limit - 0.1).abs() < 1e-12 && (b.limit_seconds - 4.4e-6).abs() < 1e-15,
            "{told:?}"
        );
        assert_eq!(b.limited_by, "memory");
        assert!(super::rows(&functions, None).iter().all(|r| r.least.is_none()));
    }
}
