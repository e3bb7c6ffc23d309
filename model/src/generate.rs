//! Text generation, logits and loss over anything that can run the entry points ([`Runner`]: compiled code, or the evaluator in tests): prefill, decode, sample, stop.
//!
//! Works on token ids; text is the tokenizer's. Checks here what a user can get wrong (ids, lengths), so a runner sees only sane calls.

use runtime::Engine;

use crate::Config;
use crate::runner::{Cause, EngineRunner, Limits, Runner};
use crate::sample::{SampleError, Sampler, Sampling};

#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("sequence {sequence}: it has no tokens; give at least one")]
    Empty { sequence: usize },
    #[error("no sequences were given")]
    Nothing,
    #[error("sequence {sequence}: token id {id} is out of range; the model has ids 0 to {last}")]
    Id { sequence: usize, id: u32, last: i64 },
    #[error(
        "sequence {sequence}: it has {tokens} tokens, but the context is {context}; shorten it or compile with \
         --max-context {tokens} or more"
    )]
    TooLong {
        sequence: usize,
        tokens: usize,
        context: i64,
    },
    #[error("sequence {sequence} has {found} tokens and the first has {wanted}; they must be equally long here")]
    Unequal {
        sequence: usize,
        found: usize,
        wanted: usize,
    },
    #[error("a text of {0} tokens predicts nothing; the loss needs at least 2")]
    NothingToPredict(usize),
    #[error("--context {0}: the loss needs windows of at least 2 tokens")]
    Context(usize),
    #[error("sequence {sequence}: {source}")]
    Sample { sequence: usize, source: SampleError },
    #[error(
        "the loss at token {at} is {value}: the weights or the computation are broken (NaN or infinity in the checkpoint?)"
    )]
    Loss { at: usize, value: f32 },
    #[error(transparent)]
    Run(Cause),
}

/// [`generate_on`] with compiled code.
pub fn generate(
    engine: &Engine,
    config: &Config,
    max_context: usize,
    prompts: &[Vec<u32>],
    request: &Request,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<Generated>, GenerateError> {
    generate_on(
        &mut EngineRunner::new(engine, config, max_context),
        prompts,
        request,
        on_token,
    )
}

/// [`logits_on`] with compiled code.
pub fn logits(
    engine: &Engine,
    config: &Config,
    max_context: usize,
    sequences: &[Vec<u32>],
) -> Result<Vec<f32>, GenerateError> {
    logits_on(&mut EngineRunner::new(engine, config, max_context), sequences)
}

/// [`eval_loss_on`] with compiled code.
pub fn eval_loss(
    engine: &Engine,
    config: &Config,
    max_context: usize,
    tokens: &[u32],
    context: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Loss, GenerateError> {
    eval_loss_on(
        &mut EngineRunner::new(engine, config, max_context),
        tokens,
        context,
        progress,
    )
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end a sequence; they are not part of the result.
    pub stop: Vec<u32>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    EndOfText,
    MaxTokens,
    /// No position is left.
    ContextFull,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::EndOfText => "end_of_text",
            Finish::MaxTokens => "max_tokens",
            Finish::ContextFull => "context_full",
        }
    }
}

/// The new tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    pub tokens: Vec<u32>,
    pub finish: Finish,
}

/// One sequence on its way.
struct Sequence<'a> {
    prompt: &'a [u32],
    sampler: Sampler,
    new: Vec<u32>,
    finish: Option<Finish>,
    /// Tokens in the caches.
    done: usize,
    /// The last token fed.
    token: u32,
}

/// What comes behind a sequence's last token.
enum Next<'l> {
    /// To be drawn from these logits.
    From(&'l [f32]),
    Is(u32),
}

/// What a call gave.
enum Decoded {
    /// [batch, vocab]
    Logits(Vec<f32>),
    /// The best of each sequence.
    Tokens(Vec<u32>),
}

impl Decoded {
    fn of(&self, sequence: usize, vocab: usize) -> Next<'_> {
        match self {
            Decoded::Logits(all) => Next::From(&all[sequence * vocab..(sequence + 1) * vocab]),
            Decoded::Tokens(all) => Next::Is(all[sequence]),
        }
    }
}

/// A call of the runner, of tokens and their places.
type Ask<T> = fn(&mut dyn Runner, &[i32], &[i32]) -> Result<T, Cause>;

/// What a call gives: logits, or what is best where nothing else is asked for. What is no token has logits that say what is wrong.
fn decoded(
    runner: &mut dyn Runner,
    how: &Sampling,
    (best, logits): (Ask<Option<Vec<i32>>>, Ask<Vec<f32>>),
    [tokens, places]: [&[i32]; 2],
) -> Result<Decoded, Cause> {
    let best = match how.temperature == 0.0 {
        true => best(runner, tokens, places)?,
        false => None,
    };
    let best: Option<Vec<u32>> = best.and_then(|all| all.into_iter().map(|t| u32::try_from(t).ok()).collect());
    match best {
        Some(tokens) => Ok(Decoded::Tokens(tokens)),
        // The same positions again leave the caches as they are.
        None => logits(runner, tokens, places).map(Decoded::Logits),
    }
}

/// Continues every prompt. `on_token(sequence, token)` sees each new token at once.
///
/// Unequal prompts are padded on the right. Where padding would push real keys out of a ring (`restart`, `stack`), only the shortest
/// prompt's length is prefilled, and longer prompts are fed token by token beside the others' new tokens.
pub fn generate_on(
    runner: &mut dyn Runner,
    prompts: &[Vec<u32>],
    request: &Request,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<Generated>, GenerateError> {
    let limits = runner.limits();
    check(prompts, &limits)?;
    let lengths = || prompts.iter().map(Vec::len);
    let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
    let context = usize::try_from(limits.max_context).unwrap_or(usize::MAX);
    let rows = match limits.ring {
        Some(ring) if longest as i64 > ring => shortest,
        _ => longest,
    };
    let batch = prompts.len();
    let mut sequences = vec![];
    for (i, prompt) in prompts.iter().enumerate() {
        let sampler = Sampler::new(request.sampling, i as u64);
        let sampler = sampler.map_err(|source| GenerateError::Sample { sequence: i, source })?;
        let done = prompt.len().min(rows);
        let finish = (request.max_new_tokens == 0).then_some(Finish::MaxTokens);
        sequences.push(Sequence {
            prompt,
            sampler,
            new: vec![],
            finish,
            done,
            token: prompt[done - 1],
        });
    }

    runner
        .begin(batch, context.min(longest.saturating_add(request.max_new_tokens)))
        .map_err(GenerateError::Run)?;
    let mut tokens = vec![0; batch * rows];
    for (s, row) in sequences.iter().zip(tokens.chunks_mut(rows)) {
        row.iter_mut().zip(s.prompt).for_each(|(t, id)| *t = *id as i32);
    }
    let last: Vec<i32> = sequences.iter().map(|s| s.done as i32 - 1).collect();
    let how = &request.sampling;
    let prefill: (Ask<_>, Ask<_>) = (|r, t, l| r.prefill_best(t, l), |r, t, l| r.prefill(t, l));
    let decode: (Ask<_>, Ask<_>) = (|r, t, s| r.best(t, s), |r, t, s| r.decode(t, s));
    let mut next = decoded(runner, how, prefill, [&tokens, &last]).map_err(GenerateError::Run)?;
    loop {
        for (i, s) in sequences.iter_mut().enumerate() {
            let next = next.of(i, limits.vocab as usize);
            s.step(next, request, context, &mut |token| on_token(i, token))
                .map_err(|source| GenerateError::Sample { sequence: i, source })?;
        }
        if sequences.iter().all(|s| s.finish.is_some()) {
            break;
        }
        // A finished sequence repeats its last token in its place, which changes nothing.
        let fed: Vec<i32> = sequences.iter().map(|s| s.token as i32).collect();
        let start: Vec<i32> = sequences
            .iter()
            .map(|s| (s.done - usize::from(s.finish.is_some())) as i32)
            .collect();
        next = decoded(runner, how, decode, [&fed, &start]).map_err(GenerateError::Run)?;
        sequences
            .iter_mut()
            .filter(|s| s.finish.is_none())
            .for_each(|s| s.done += 1);
    }
    let result = sequences.into_iter().map(|s| Generated {
        tokens: s.new,
        finish: s.finish.unwrap_or(Finish::MaxTokens),
    });
    Ok(result.collect())
}

impl Sequence<'_> {
    /// Decides the token to feed next: the prompt's, or a new one; or stops.
    fn step(
        &mut self,
        next: Next,
        request: &Request,
        context: usize,
        on_token: &mut dyn FnMut(u32),
    ) -> Result<(), SampleError> {
        if self.finish.is_some() {
            return Ok(());
        }
        if let Some(token) = self.prompt.get(self.done) {
            self.token = *token;
            return Ok(());
        }
        let token = match next {
            Next::From(logits) => self.sampler.next(logits)?,
            Next::Is(token) => token,
        };
        if request.stop.contains(&token) {
            self.finish = Some(Finish::EndOfText);
            return Ok(());
        }
        self.new.push(token);
        on_token(token);
        if self.new.len() == request.max_new_tokens {
            self.finish = Some(Finish::MaxTokens);
        } else if self.done == context {
            self.finish = Some(Finish::ContextFull);
        } else {
            self.token = token;
        }
        Ok(())
    }
}

/// logits [B, T, vocab] of equally long sequences, all positions.
pub fn logits_on(runner: &mut dyn Runner, sequences: &[Vec<u32>]) -> Result<Vec<f32>, GenerateError> {
    check_equal(sequences, &runner.limits())?;
    let tokens: Vec<i32> = sequences.iter().flatten().map(|id| *id as i32).collect();
    runner.logits(sequences.len(), &tokens).map_err(GenerateError::Run)
}

/// How well the model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean negative log likelihood in nats.
    pub loss: f64,
    /// exp(loss)
    pub perplexity: f64,
    /// Tokens predicted.
    pub predictions: usize,
}

/// The loss on a text cut into windows of `context` tokens that do not overlap (the last one may be shorter).
///
/// In each window every token but the first is predicted from those before it in the window: a window of n tokens gives n - 1
/// predictions, and the mean, in f64, is over all predictions of all windows. `progress(tokens done)` after each
/// window.
pub fn eval_loss_on(
    runner: &mut dyn Runner,
    tokens: &[u32],
    context: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Loss, GenerateError> {
    if context < 2 {
        return Err(GenerateError::Context(context));
    }
    if tokens.len() < 2 {
        return Err(GenerateError::NothingToPredict(tokens.len()));
    }
    let limits = runner.limits();
    let longest = context.min(tokens.len());
    if longest as i64 > limits.max_context {
        return Err(GenerateError::TooLong {
            sequence: 0,
            tokens: longest,
            context: limits.max_context,
        });
    }
    check_ids(0, tokens, limits.vocab)?;
    let (mut sum, mut count) = (0.0, 0);
    for (w, window) in tokens.chunks(context).enumerate() {
        if window.len() >= 2 {
            let ids: Vec<i32> = window.iter().map(|id| *id as i32).collect();
            // The last token's successor is in another window.
            let targets: Vec<i32> = ids[1..].iter().copied().chain([-1]).collect();
            let nll = runner.loss(1, &ids, &targets).map_err(GenerateError::Run)?;
            if let Some(at) = nll.iter().position(|x| !x.is_finite()) {
                return Err(GenerateError::Loss {
                    at: w * context + at,
                    value: nll[at],
                });
            }
            sum += nll.iter().take(window.len() - 1).map(|x| f64::from(*x)).sum::<f64>();
            count += window.len() - 1;
        }
        progress(w * context + window.len());
    }
    let loss = sum / count as f64;
    Ok(Loss {
        loss,
        perplexity: loss.exp(),
        predictions: count,
    })
}

/// Are there sequences, equally long and in the model's limits?
pub(crate) fn check_equal(sequences: &[Vec<u32>], limits: &Limits) -> Result<(), GenerateError> {
    check(sequences, limits)?;
    let wanted = sequences[0].len();
    match sequences.iter().enumerate().find(|(_, s)| s.len() != wanted) {
        Some((sequence, s)) => Err(GenerateError::Unequal {
            sequence,
            found: s.len(),
            wanted,
        }),
        None => Ok(()),
    }
}

fn check(sequences: &[Vec<u32>], limits: &Limits) -> Result<(), GenerateError> {
    if sequences.is_empty() {
        return Err(GenerateError::Nothing);
    }
    for (sequence, ids) in sequences.iter().enumerate() {
        if ids.is_empty() {
            return Err(GenerateError::Empty { sequence });
        }
        if ids.len() as i64 > limits.max_context {
            return Err(GenerateError::TooLong {
                sequence,
                tokens: ids.len(),
                context: limits.max_context,
            });
        }
        check_ids(sequence, ids, limits.vocab)?;
    }
    Ok(())
}

fn check_ids(sequence: usize, ids: &[u32], vocab: i64) -> Result<(), GenerateError> {
    match ids.iter().find(|id| i64::from(**id) >= vocab) {
        Some(&id) => Err(GenerateError::Id {
            sequence,
            id,
            last: vocab - 1,
        }),
        None => Ok(()),
    }
}
