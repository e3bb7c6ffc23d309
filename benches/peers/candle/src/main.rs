//! candle's Qwen3 on the CPU: prefill and decode rates, as JSON. `candle-peer FOLDER f32|bf16 CONTEXT DECODE RUNS`
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let (folder, context, decode, runs) = (&args[1], args[3].parse::<usize>()?, args[4].parse::<usize>()?, args[5].parse::<usize>()?);
    let dtype = if args[2] == "bf16" { DType::BF16 } else { DType::F32 };
    let device = Device::Cpu;
    // candle wants fields that a plain Qwen3 config may leave out.
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{folder}/config.json"))?)?;
    for (name, value) in [("max_window_layers", 0.into()), ("sliding_window", serde_json::Value::Null), ("use_sliding_window", false.into())] {
        if config.get(name).is_none() {
            config[name] = value;
        }
    }
    let config: Config = serde_json::from_value(config)?;
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[format!("{folder}/model.safetensors")], dtype, &device)? };
    let mut model = ModelForCausalLM::new(&config, vb)?;
    let tokens: Vec<u32> = (0..context).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let (mut prefill, mut step) = (f64::INFINITY, f64::INFINITY);
    for run in 0..=runs {
        model.clear_kv_cache();
        let input = Tensor::new(&tokens[..], &device)?.unsqueeze(0)?;
        let start = Instant::now();
        model.forward(&input, 0)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        let p = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for i in 0..decode {
            let input = Tensor::new(&[(i % 100) as u32], &device)?.unsqueeze(0)?;
            model.forward(&input, context + i)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        }
        let d = start.elapsed().as_secs_f64() / decode as f64;
        if run > 0 {
            prefill = prefill.min(p);
            step = step.min(d);
        }
    }
    println!("{{\"prefill_tok_s\": {}, \"decode_tok_s\": {}}}", context as f64 / prefill, 1.0 / step);
    Ok(())
}
