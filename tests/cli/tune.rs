//! `loopc tune` on evaluated PTX: what is measured means nothing there, so these tests are about what is run, told, remembered and used.

use std::path::Path;

use crate::Sandbox;
use crate::check::{evaluated, report};
use crate::train::tiny;

const DEVICE: [&str; 4] = ["--device", "cuda", "--dtype", "bf16"];

/// Every way of two kernels has run and agrees, and the table in the cache says which one was chosen.
#[test]
fn what_is_measured_is_remembered_and_used() {
    let s = Sandbox::new();
    let model = tiny(&s, "model", "layer");
    // What multiplies back to the model's width.
    let tune = [
        "tune", &model, "--only", "x24", "--tokens", "1,20", "--runs", "1", "--json",
    ];
    let found = report(&evaluated(&s, &[&tune[..], &DEVICE].concat()));
    assert_eq!(
        (found["machine"].as_str(), found["target"].as_str()),
        (Some("evaluated PTX"), Some("sm_90a"))
    );
    assert_eq!(found["faults"], serde_json::json!([]), "{found}");
    let rows = found["rows"].as_array().unwrap();
    let names = |row: &serde_json::Value| -> Vec<String> {
        let ways = row["ways"].as_array().unwrap().iter();
        ways.map(|w| w["way"].as_str().unwrap().to_string()).collect()
    };
    // One row: all ways. Twenty: those for many.
    let all = |n: i64| rows.iter().filter(move |r| r["rows"] == n);
    assert_eq!((all(1).count(), all(20).count()), (2, 2), "{found}");
    assert!(all(1).all(|r| names(r).len() >= 5 && names(r)[0] == "r8"), "{found}");
    assert!(all(20).all(|r| !names(r).iter().any(|w| w.starts_with('r'))), "{found}");
    assert!(
        rows.iter()
            .all(|r| names(r).contains(&r["chosen"].as_str().unwrap().to_string()))
    );

    let table = s.path("cache/tuning/evaluated-ptx.sm_90a.toml");
    assert_eq!(found["output"].as_str().map(Path::new), Some(table.as_path()));
    let text = std::fs::read_to_string(&table).unwrap();
    for row in rows {
        assert!(
            text.contains(&format!("\"{}\" = [", row["kernel"].as_str().unwrap())),
            "{text}"
        );
    }

    // What is compiled for the device goes by it, and is compiled again when it changes.
    let out = s.path("logits").display().to_string();
    let logits = [&["logits", &model, "--tokens", "5,6,7", "-o", &out][..], &DEVICE].concat();
    let artefacts = || {
        let files = std::fs::read_dir(s.path("cache")).unwrap();
        files
            .filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "loopc"))
            .count()
    };
    let told = |wanted: usize| {
        let output = evaluated(&s, &logits);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        assert_eq!(artefacts(), wanted);
        told
    };
    let chosen = all(20).next().unwrap()["chosen"].as_str().unwrap();
    let gone = text.replace(&format!("way = \"{chosen}\""), "way = \"gone\"");
    assert_ne!(gone, text);
    std::fs::write(&table, &gone).unwrap();
    let warned = told(1);
    assert!(
        warned.contains("there is no way `gone`") && warned.contains("loopc tune"),
        "{warned}"
    );
    assert_eq!(told(1), "");
    std::fs::write(&table, "no table").unwrap();
    let warned = told(2);
    assert!(
        warned.contains("it is not used") && warned.lines().count() == 1,
        "{warned}"
    );
}

/// The ways that were compiled of the product behind attention, by its functions' names.
fn ways(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder.join("sm_90a")).unwrap();
    let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    let ways = names.filter_map(|n| {
        let way = n.strip_prefix("add_matmul_24x24_")?.strip_suffix(".mlir")?;
        // What hands its rows on is the same way once more.
        (!way.ends_with("_hands")).then(|| way.to_string())
    });
    let mut ways: Vec<String> = ways.collect();
    ways.sort();
    ways
}

#[test]
fn a_table_that_is_named_decides_which_ways_are_compiled() {
    let s = Sandbox::new();
    let model = tiny(&s, "model", "base");
    let (file, table) = (s.path("a.loopc").display().to_string(), s.path("ways.toml"));
    let compile = |folder: &str, more: &[&str]| {
        let emit = format!("mlir={}", s.path(folder).display());
        let args = [
            "compile", &model, "-o", &file, "--dtype", "bf16", "--target", "sm_90a", "--entry", "prefill", "--emit",
            &emit,
        ];
        s.ok(&[&args[..], more].concat());
        ways(&s.path(folder))
    };
    let shipped = compile("shipped", &[]);
    assert!(shipped.len() > 3 && shipped.contains(&"r8".to_string()), "{shipped:?}");
    let last = shipped.iter().rfind(|w| !w.starts_with('r')).unwrap();
    let text = format!("target = \"sm_90a\"\n[kernels]\n\"matmul *\" = [{{ way = \"{last}\" }}]\n");
    std::fs::write(&table, text).unwrap();
    let named = table.display().to_string();
    assert_eq!(compile("named", &["--tuning", &named]), [last.as_str()]);

    let run = [
        "logits", &file, "--tokens", "1", "-o", &file, "--device", "cuda", "--tuning", &named,
    ];
    s.refused(&run, "is compiled already");
    let wrong = ["compile", &model, "-o", &file, "--target", "sm_80", "--tuning", &named];
    s.refused(&wrong, "it is for sm_90a, and this is compiled for sm_80");
    s.refused(
        &["logits", &model, "--tokens", "1", "-o", &file, "--tuning", &named],
        "--device cuda",
    );
    std::fs::write(
        &table,
        "target = \"sm_90a\"\n[kernels]\nx = [{ from = 9, to = 8, way = \"a\" }]\n",
    )
    .unwrap();
    s.refused(
        &["compile", &model, "-o", &file, "--target", "sm_90a", "--tuning", &named],
        "rows 9 to 8",
    );
}

#[test]
fn on_the_cpu_there_is_nothing_to_tune() {
    let s = Sandbox::new();
    let told = s.ok(&["tune", "absent"]);
    assert!(told.contains("nothing to tune") && told.lines().count() == 1, "{told}");
}

#[test]
fn help() {
    let s = Sandbox::new();
    insta::assert_snapshot!("tune_help", s.ok(&["tune", "--help"]));
}
