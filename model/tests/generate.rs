//! Generation, logits and loss over the naive graph in the evaluator: the logic above any compiled program.

mod common;

use std::error::Error;

use common::{CAPACITY, Case, States, goldens};
use ir::eval::Tensor;
use model::Mode;
use model::generate::{Finish, GenerateError, Request, eval_loss_on, generate_on, logits_on};
use model::runner::{Limits, Runner};
use model::sample::Sampling;

/// A golden checkpoint in the evaluator.
struct Evaluated {
    case: Case,
    states: States,
    max_context: i64,
    /// The newest logits [batch, vocab].
    newest: Vec<f32>,
    /// Does it tell what is best? Of every third token it says that there is none.
    tells: bool,
    told: usize,
}

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn floats(ids: &[i32]) -> Vec<f64> {
    ids.iter().map(|x| f64::from(*x)).collect()
}

fn singles(t: Tensor) -> Vec<f32> {
    t.data.iter().map(|x| *x as f32).collect()
}

impl Runner for Evaluated {
    fn limits(&self) -> Limits {
        Limits {
            max_context: self.max_context,
            ..Limits::new(&self.case.config, CAPACITY)
        }
    }

    fn begin(&mut self, batch: usize, capacity: usize) -> Result<()> {
        assert!(capacity as i64 <= self.max_context);
        self.states = self.case.states(batch);
        Ok(())
    }

    fn prefill(&mut self, tokens: &[i32], last: &[i32]) -> Result<Vec<f32>> {
        let shape = [last.len(), tokens.len() / last.len()];
        let inputs = [
            ("tokens", &shape[..], floats(tokens)),
            ("last", &[last.len()], floats(last)),
        ];
        self.newest = singles(self.case.run("prefill", 0, &inputs, &mut self.states));
        Ok(self.newest.clone())
    }

    fn decode(&mut self, tokens: &[i32], start: &[i32]) -> Result<Vec<f32>> {
        let keys = i64::from(start.iter().max().unwrap() + 1);
        let inputs = [
            ("tokens", &[start.len(), 1][..], floats(tokens)),
            ("start", &[start.len()], floats(start)),
        ];
        self.newest = singles(self.case.run("decode", keys, &inputs, &mut self.states));
        Ok(self.newest.clone())
    }

    fn best(&mut self, tokens: &[i32], start: &[i32]) -> Result<Option<Vec<i32>>> {
        if !self.tells {
            return Ok(None);
        }
        let vocab = self.case.config.vocab as usize;
        let logits = self.decode(tokens, start)?;
        self.told += 1;
        let best = |row: &[f32]| (0..vocab).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i32;
        let best = logits.chunks(vocab).map(best);
        Ok(Some(if self.told.is_multiple_of(3) {
            vec![-1; start.len()]
        } else {
            best.collect()
        }))
    }

    fn logits(&mut self, batch: usize, tokens: &[i32]) -> Result<Vec<f32>> {
        let shape = [batch, tokens.len() / batch];
        Ok(singles(self.case.run(
            "logits",
            0,
            &[("tokens", &shape, floats(tokens))],
            &mut States::new(),
        )))
    }

    fn loss(&mut self, batch: usize, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>> {
        let shape = [batch, tokens.len() / batch];
        let inputs = [
            ("tokens", &shape[..], floats(tokens)),
            ("targets", &shape[..], floats(targets)),
        ];
        Ok(singles(self.case.run("loss", 0, &inputs, &mut States::new())))
    }
}

/// A small checkpoint of each mode, with a window shorter than the prompts below.
fn runners() -> Vec<Evaluated> {
    let all = goldens()
        .into_iter()
        .filter(|f| Mode::ALL.iter().any(|m| f.ends_with(m.name())));
    let runners: Vec<_> = all
        .map(|f| Evaluated {
            case: Case::load(&f),
            states: States::new(),
            max_context: CAPACITY,
            newest: vec![],
            tells: false,
            told: 0,
        })
        .collect();
    assert_eq!(runners.len(), 4);
    runners
}

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_k: None,
    top_p: None,
    seed: 0,
};

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 1, 4, 1, 5, 9, 2], vec![6], vec![5, 3, 5, 8, 9]]
}

/// New tokens, one list per prompt, without streaming.
fn run(runner: &mut Evaluated, prompts: &[Vec<u32>], n: usize, how: Sampling) -> Vec<Vec<u32>> {
    let request = Request {
        max_new_tokens: n,
        sampling: how,
        stop: vec![],
    };
    generate_on(runner, prompts, &request, &mut |_, _| ())
        .unwrap()
        .into_iter()
        .map(|g| g.tokens)
        .collect()
}

#[test]
fn greedy_generation_is_the_argmax_of_growing_texts() {
    for mut runner in runners() {
        let mut text = prompts()[0].clone();
        let new = run(&mut runner, &[text.clone()], 6, GREEDY).remove(0);
        let vocab = runner.case.config.vocab as usize;
        for token in new {
            let all = logits_on(&mut runner, &[text.clone()]).unwrap();
            let row = &all[all.len() - vocab..];
            let best = (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            assert_eq!(token, best as u32, "{} after {text:?}", runner.case.name);
            text.push(token);
        }
    }
}

/// What is best need not come as logits, and where there is no best the logits say why.
#[test]
fn what_is_told_is_what_logits_say() {
    for mut runner in runners() {
        let from_logits = run(&mut runner, &prompts(), 7, GREEDY);
        runner.tells = true;
        assert_eq!(
            run(&mut runner, &prompts(), 7, GREEDY),
            from_logits,
            "{}",
            runner.case.name
        );
        assert!(runner.told > 3);
        runner.told = 0;
        let warm = Sampling {
            temperature: 1.0,
            ..GREEDY
        };
        run(&mut runner, &prompts(), 7, warm);
        assert_eq!(runner.told, 0);
    }
}

#[test]
fn a_batch_of_unequal_prompts_gives_what_each_gives_alone() {
    for mut runner in runners() {
        let together = run(&mut runner, &prompts(), 7, GREEDY);
        // A sequence that is ready keeps its last place, so at the end these are the logits of everyone's last token.
        let newest = runner.newest.clone();
        let vocab = runner.case.config.vocab as usize;
        for (i, prompt) in prompts().into_iter().enumerate() {
            let alone = run(&mut runner, &[prompt], 7, GREEDY).remove(0);
            assert_eq!(together[i], alone, "{}: sequence {i}", runner.case.name);
            let rows = newest[i * vocab..].iter().zip(&runner.newest);
            let error = rows.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(
                error < 1e-5,
                "{}: sequence {i}: logits differ by {error}",
                runner.case.name
            );
        }
    }
}

#[test]
fn generation_stops_and_streams() {
    for mut runner in runners() {
        let free = run(&mut runner, &prompts(), 8, GREEDY);
        // A token of the longest prompt's text ends it; the others stop at it too if they make it.
        let eos = free[0][2];
        let mut streamed = vec![vec![]; 3];
        let list = prompts();
        let request = Request {
            max_new_tokens: 8,
            sampling: GREEDY,
            stop: vec![eos],
        };
        let result = generate_on(&mut runner, &list, &request, &mut |i, token| streamed[i].push(token)).unwrap();
        for (i, generated) in result.iter().enumerate() {
            let end = free[i].iter().position(|t| *t == eos);
            let stop = if end.is_some() {
                Finish::EndOfText
            } else {
                Finish::MaxTokens
            };
            assert_eq!(
                (&generated.tokens[..], generated.finish),
                (&free[i][..end.unwrap_or(8)], stop)
            );
            assert_eq!(streamed[i], generated.tokens);
        }

        // 7 tokens in a context of 9: positions 7 and 8 are left, and the last new token needs none.
        runner.max_context = 9;
        let request = Request {
            max_new_tokens: 8,
            sampling: GREEDY,
            stop: vec![],
        };
        let full = generate_on(&mut runner, &list[..1], &request, &mut |_, _| ())
            .unwrap()
            .remove(0);
        assert_eq!((&full.tokens[..], full.finish), (&free[0][..3], Finish::ContextFull));

        let nothing = Request {
            max_new_tokens: 0,
            ..request
        };
        let nothing = generate_on(&mut runner, &list[..1], &nothing, &mut |_, _| ())
            .unwrap()
            .remove(0);
        assert_eq!((nothing.tokens.len(), nothing.finish), (0, Finish::MaxTokens));
    }
}

#[test]
fn a_seed_gives_the_same_text_again() {
    for mut runner in runners() {
        let hot = Sampling {
            temperature: 3.0,
            top_k: Some(50),
            top_p: Some(0.95),
            seed: 5,
        };
        let first = run(&mut runner, &prompts(), 8, hot);
        assert_eq!(first, run(&mut runner, &prompts(), 8, hot));
        assert_ne!(first, run(&mut runner, &prompts(), 8, Sampling { seed: 6, ..hot }));
    }
}

#[test]
fn the_loss_of_windows_is_the_mean_over_their_predictions() {
    for mut runner in runners() {
        let tokens: Vec<u32> = (0..11).map(|i| (i * 7 + 3) % 20).collect();
        // Windows of 5, 5 and 1: the last predicts nothing.
        let mut sum = 0.0;
        for window in [&tokens[..5], &tokens[5..10]] {
            let all = logits_on(&mut runner, &[window.to_vec()]).unwrap();
            for (row, next) in all.chunks(runner.case.config.vocab as usize).zip(&window[1..]) {
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum += total.ln() - f64::from(row[*next as usize]);
            }
        }
        let mut seen = vec![];
        let loss = eval_loss_on(&mut runner, &tokens, 5, &mut |done| seen.push(done)).unwrap();
        assert_eq!(loss.predictions, 8);
        assert!(
            (loss.loss - sum / 8.0).abs() < 1e-6,
            "{loss:?} instead of {}",
            sum / 8.0
        );
        assert!((loss.perplexity - loss.loss.exp()).abs() < 1e-9);
        assert_eq!(seen, [5, 10, 11]);
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_numbers() {
    let mut runner = runners().remove(0);
    runner.max_context = 4;
    let vocab = runner.case.config.vocab as u32;
    let mut refused = |prompts: &[Vec<u32>]| {
        let request = Request {
            max_new_tokens: 3,
            sampling: GREEDY,
            stop: vec![],
        };
        generate_on(&mut runner, prompts, &request, &mut |_, _| ())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused(&[]), "no sequences were given");
    assert_eq!(
        refused(&[vec![1], vec![]]),
        "sequence 1: it has no tokens; give at least one"
    );
    let error = refused(&[vec![1; 5]]);
    assert!(
        error.contains("it has 5 tokens, but the context is 4") && error.contains("--max-context 5"),
        "{error}"
    );
    let error = refused(&[vec![0, vocab]]);
    assert!(
        error.contains(&format!(
            "token id {vocab} is out of range; the model has ids 0 to {}",
            vocab - 1
        )),
        "{error}"
    );
    let unequal = logits_on(&mut runner, &[vec![1, 2], vec![3]]);
    assert!(matches!(
        unequal,
        Err(GenerateError::Unequal {
            sequence: 1,
            found: 1,
            wanted: 2
        })
    ));
    let mut loss = |tokens: &[u32], context| eval_loss_on(&mut runner, tokens, context, &mut |_| ()).unwrap_err();
    assert!(matches!(loss(&[1, 2], 1), GenerateError::Context(1)));
    assert!(matches!(loss(&[1], 4), GenerateError::NothingToPredict(1)));
    assert!(matches!(
        loss(&[1; 9], 5),
        GenerateError::TooLong {
            tokens: 5,
            context: 4,
            ..
        }
    ));
    assert!(matches!(loss(&[1, vocab], 4), GenerateError::Id { .. }));
}
