// A training step of a tiny model (mode layer, head_dim 64, 2 x 24 tokens), for some of its tensors, after all passes: loopc train
// --trainable 'self_attn.[qkv]_proj|up_proj|gate_projections.*bias|embed' --dtype bf16 --emit graph=DIR.
module {
  func.func @layer_full_keeping(
    %x: tensor<2x24x32xf32> {loop.input = "x"},
    %input_layernorm: tensor<32xf32> {loop.weight = "model.layers.{i}.input_layernorm.weight"},
    %q_proj: tensor<256x32xf32> {loop.state = "param.model.layers.{i}.self_attn.q_proj.weight"},
    %q_norm: tensor<64xf32> {loop.weight = "model.layers.{i}.self_attn.q_norm.weight"},
    %k_proj: tensor<128x32xf32> {loop.state = "param.model.layers.{i}.self_attn.k_proj.weight"},
    %k_norm: tensor<64xf32> {loop.weight = "model.layers.{i}.self_attn.k_norm.weight"},
    %v_proj: tensor<128x32xf32> {loop.state = "param.model.layers.{i}.self_attn.v_proj.weight"},
    %gate_weight: tensor<4x64xf32> {loop.weight = "model.gate_projections.{i}.weight"},
    %gate_bias: tensor<4xf32> {loop.state = "param.model.gate_projections.{i}.bias"},
    %o_proj: tensor<32x256xbf16> {loop.weight = "model.layers.{i}.self_attn.o_proj.weight"},
    %post_attention_layernorm: tensor<32xf32> {loop.weight = "model.layers.{i}.post_attention_layernorm.weight"},
    %gate_proj: tensor<40x32xbf16> {loop.weight = "model.layers.{i}.mlp.gate_proj.weight"},
    %up_proj: tensor<40x32xf32> {loop.state = "param.model.layers.{i}.mlp.up_proj.weight"},
    %down_proj: tensor<32x40xbf16> {loop.weight = "model.layers.{i}.mlp.down_proj.weight"}
  ) -> (tensor<2x24x32xf32> {loop.name = "x"}, tensor<2x24x256xbf16> {loop.name = "kept.0"}, tensor<2x24x128xbf16> {loop.name = "kept.1"}, tensor<2x24x128xbf16> {loop.name = "kept.2"}, tensor<2x24x32xf32> {loop.name = "kept.3"}, tensor<2x24x40xf32> {loop.name = "kept.4"}, tensor<2x24x40xf32> {loop.name = "kept.5"}, tensor<2x2x2x24x64xf32> {loop.name = "kept.6"}, tensor<2x2x2x24x64xf32> {loop.name = "kept.7"}) {
    %75 = "loop.cast"(%q_proj) {dtype = "bf16"} : (tensor<256x32xf32>) -> tensor<256x32xbf16>
    %76 = "loop.cast"(%k_proj) {dtype = "bf16"} : (tensor<128x32xf32>) -> tensor<128x32xbf16>
    %77 = "loop.cast"(%v_proj) {dtype = "bf16"} : (tensor<128x32xf32>) -> tensor<128x32xbf16>
    %78 = "loop.cast"(%up_proj) {dtype = "bf16"} : (tensor<40x32xf32>) -> tensor<40x32xbf16>
    %2 = "loop.rms_norm"(%x, %input_layernorm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xbf16>
    %4 = "loop.matmul"(%2, %75) {dtype = "bf16", transpose_b = true} : (tensor<2x24x32xbf16>, tensor<256x32xbf16>) -> tensor<2x24x256xbf16>
    %5 = "loop.reshape"(%4) {type = tensor<2x24x4x64xbf16>} : (tensor<2x24x256xbf16>) -> tensor<2x24x4x64xbf16>
    %237 = "loop.transpose"(%5) {perm = [0, 2, 1, 3]} : (tensor<2x24x4x64xbf16>) -> tensor<2x4x24x64xbf16>
    %8 = "loop.rms_norm"(%237, %q_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x4x24x64xbf16>, tensor<64xf32>) -> tensor<2x4x24x64xbf16>
    %9 = "loop.rope"(%8) {dtype = "bf16", max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x4x24x64xbf16>) -> tensor<2x4x24x64xbf16>
    %11 = "loop.matmul"(%2, %76) {dtype = "bf16", transpose_b = true} : (tensor<2x24x32xbf16>, tensor<128x32xbf16>) -> tensor<2x24x128xbf16>
    %12 = "loop.reshape"(%11) {type = tensor<2x24x2x64xbf16>} : (tensor<2x24x128xbf16>) -> tensor<2x24x2x64xbf16>
    %238 = "loop.transpose"(%12) {perm = [0, 2, 1, 3]} : (tensor<2x24x2x64xbf16>) -> tensor<2x2x24x64xbf16>
    %15 = "loop.rms_norm"(%238, %k_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x2x24x64xbf16>, tensor<64xf32>) -> tensor<2x2x24x64xbf16>
    %16 = "loop.rope"(%15) {dtype = "bf16", max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x24x64xbf16>
    %18 = "loop.matmul"(%2, %77) {dtype = "bf16", transpose_b = true} : (tensor<2x24x32xbf16>, tensor<128x32xbf16>) -> tensor<2x24x128xbf16>
    %19 = "loop.reshape"(%18) {type = tensor<2x24x2x64xbf16>} : (tensor<2x24x128xbf16>) -> tensor<2x24x2x64xbf16>
    %20 = "loop.transpose"(%19) {perm = [0, 2, 1, 3]} : (tensor<2x24x2x64xbf16>) -> tensor<2x2x24x64xbf16>
    %21 = "loop.reshape"(%9) {type = tensor<2x2x2x24x64xbf16>} : (tensor<2x4x24x64xbf16>) -> tensor<2x2x2x24x64xbf16>
    %26 = "loop.reshape"(%gate_weight) {type = tensor<2x2x1x64xf32>} : (tensor<4x64xf32>) -> tensor<2x2x1x64xf32>
    %27 = "loop.reshape"(%gate_bias) {type = tensor<2x2x1x1xf32>} : (tensor<4xf32>) -> tensor<2x2x1x1xf32>
    %28 = "loop.cast"(%21) {dtype = "f32"} : (tensor<2x2x2x24x64xbf16>) -> tensor<2x2x2x24x64xf32>
    %29 = "loop.mul"(%28, %26) : (tensor<2x2x2x24x64xf32>, tensor<2x2x1x64xf32>) -> tensor<2x2x2x24x64xf32>
    %30 = "loop.reduce_sum"(%29) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %31 = "loop.add"(%30, %27) : (tensor<2x2x2x24x1xf32>, tensor<2x2x1x1xf32>) -> tensor<2x2x2x24x1xf32>
    %32 = "loop.sigmoid"(%31) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %33 = "loop.reshape"(%16) {type = tensor<2x2x1x24x64xbf16>} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x1x24x64xbf16>
    %34 = "loop.reshape"(%20) {type = tensor<2x2x1x24x64xbf16>} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x1x24x64xbf16>
    %51 = "loop.constant"() {type = tensor<f32>, value = 1.0 : f64} : () -> tensor<f32>
    %52 = "loop.sub"(%51, %32) : (tensor<f32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %79 = "loop.sweep"(%21, %33, %34) {far = 10 : i64, near = 0 : i64, scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>) -> tensor<2x2x2x24x66xf32>
    %80 = "loop.sweep"(%21, %33, %34, %79) {continues = true, near = 10 : i64, scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x66xf32>
    %81 = "loop.mean"(%80) : (tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x64xf32>
    %82 = "loop.mul"(%32, %81) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %83 = "loop.mean"(%79) : (tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x64xf32>
    %84 = "loop.mul"(%52, %83) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %85 = "loop.add"(%82, %84) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %86 = "loop.cast"(%85) {dtype = "bf16"} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xbf16>
    %57 = "loop.reshape"(%86) {type = tensor<2x4x24x64xbf16>} : (tensor<2x2x2x24x64xbf16>) -> tensor<2x4x24x64xbf16>
    %58 = "loop.transpose"(%57) {perm = [0, 2, 1, 3]} : (tensor<2x4x24x64xbf16>) -> tensor<2x24x4x64xbf16>
    %59 = "loop.reshape"(%58) {type = tensor<2x24x256xbf16>} : (tensor<2x24x4x64xbf16>) -> tensor<2x24x256xbf16>
    %61 = "loop.matmul"(%59, %o_proj) {dtype = "f32", transpose_b = true} : (tensor<2x24x256xbf16>, tensor<32x256xbf16>) -> tensor<2x24x32xf32>
    %62 = "loop.add"(%x, %61) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %64 = "loop.rms_norm"(%62, %post_attention_layernorm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xbf16>
    %66 = "loop.matmul"(%64, %gate_proj) {dtype = "f32", transpose_b = true} : (tensor<2x24x32xbf16>, tensor<40x32xbf16>) -> tensor<2x24x40xf32>
    %68 = "loop.matmul"(%64, %78) {dtype = "f32", transpose_b = true} : (tensor<2x24x32xbf16>, tensor<40x32xbf16>) -> tensor<2x24x40xf32>
    %69 = "loop.silu"(%66) : (tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %70 = "loop.mul"(%69, %68) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %71 = "loop.cast"(%70) {dtype = "bf16"} : (tensor<2x24x40xf32>) -> tensor<2x24x40xbf16>
    %73 = "loop.matmul"(%71, %down_proj) {dtype = "f32", transpose_b = true} : (tensor<2x24x40xbf16>, tensor<32x40xbf16>) -> tensor<2x24x32xf32>
    %74 = "loop.add"(%62, %73) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    return %74, %4, %11, %18, %61, %66, %68, %81, %83 : tensor<2x24x32xf32>, tensor<2x24x256xbf16>, tensor<2x24x128xbf16>, tensor<2x24x128xbf16>, tensor<2x24x32xf32>, tensor<2x24x40xf32>, tensor<2x24x40xf32>, tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>
  }

  func.func @layer_full_backward(
    %x: tensor<2x24x32xf32> {loop.input = "x"},
    %input_layernorm: tensor<32xf32> {loop.weight = "model.layers.{i}.input_layernorm.weight"},
    %q_proj: tensor<256x32xf32> {loop.state = "param.model.layers.{i}.self_attn.q_proj.weight"},
    %q_norm: tensor<64xf32> {loop.weight = "model.layers.{i}.self_attn.q_norm.weight"},
    %k_proj: tensor<128x32xf32> {loop.state = "param.model.layers.{i}.self_attn.k_proj.weight"},
    %k_norm: tensor<64xf32> {loop.weight = "model.layers.{i}.self_attn.k_norm.weight"},
    %v_proj: tensor<128x32xf32> {loop.state = "param.model.layers.{i}.self_attn.v_proj.weight"},
    %gate_weight: tensor<4x64xf32> {loop.weight = "model.gate_projections.{i}.weight"},
    %gate_bias: tensor<4xf32> {loop.state = "param.model.gate_projections.{i}.bias"},
    %o_proj: tensor<32x256xbf16> {loop.weight = "model.layers.{i}.self_attn.o_proj.weight"},
    %post_attention_layernorm: tensor<32xf32> {loop.weight = "model.layers.{i}.post_attention_layernorm.weight"},
    %gate_proj: tensor<40x32xbf16> {loop.weight = "model.layers.{i}.mlp.gate_proj.weight"},
    %up_proj: tensor<40x32xf32> {loop.state = "param.model.layers.{i}.mlp.up_proj.weight"},
    %down_proj: tensor<32x40xbf16> {loop.weight = "model.layers.{i}.mlp.down_proj.weight"},
    %d_x: tensor<2x24x32xf32> {loop.input = "d.x"},
    %4: tensor<2x24x256xbf16> {loop.input = "kept.0"},
    %11: tensor<2x24x128xbf16> {loop.input = "kept.1"},
    %18: tensor<2x24x128xbf16> {loop.input = "kept.2"},
    %61: tensor<2x24x32xf32> {loop.input = "kept.3"},
    %66: tensor<2x24x40xf32> {loop.input = "kept.4"},
    %68: tensor<2x24x40xf32> {loop.input = "kept.5"},
    %81: tensor<2x2x2x24x64xf32> {loop.input = "kept.6"},
    %83: tensor<2x2x2x24x64xf32> {loop.input = "kept.7"}
  ) -> (tensor<2x24x32xf32> {loop.name = "d.x"}, tensor<4xf32> {loop.name = "grad.param.model.gate_projections.{i}.bias"}, tensor<40x32xf32> {loop.name = "grad.param.model.layers.{i}.mlp.up_proj.weight"}, tensor<128x32xf32> {loop.name = "grad.param.model.layers.{i}.self_attn.k_proj.weight"}, tensor<256x32xf32> {loop.name = "grad.param.model.layers.{i}.self_attn.q_proj.weight"}, tensor<128x32xf32> {loop.name = "grad.param.model.layers.{i}.self_attn.v_proj.weight"}) {
    %75 = "loop.cast"(%q_proj) {dtype = "bf16"} : (tensor<256x32xf32>) -> tensor<256x32xbf16>
    %76 = "loop.cast"(%k_proj) {dtype = "bf16"} : (tensor<128x32xf32>) -> tensor<128x32xbf16>
    %77 = "loop.cast"(%v_proj) {dtype = "bf16"} : (tensor<128x32xf32>) -> tensor<128x32xbf16>
    %78 = "loop.cast"(%up_proj) {dtype = "bf16"} : (tensor<40x32xf32>) -> tensor<40x32xbf16>
    %2 = "loop.rms_norm"(%x, %input_layernorm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xbf16>
    %5 = "loop.reshape"(%4) {type = tensor<2x24x4x64xbf16>} : (tensor<2x24x256xbf16>) -> tensor<2x24x4x64xbf16>
    %237 = "loop.transpose"(%5) {perm = [0, 2, 1, 3]} : (tensor<2x24x4x64xbf16>) -> tensor<2x4x24x64xbf16>
    %8 = "loop.rms_norm"(%237, %q_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x4x24x64xbf16>, tensor<64xf32>) -> tensor<2x4x24x64xbf16>
    %9 = "loop.rope"(%8) {dtype = "bf16", max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x4x24x64xbf16>) -> tensor<2x4x24x64xbf16>
    %12 = "loop.reshape"(%11) {type = tensor<2x24x2x64xbf16>} : (tensor<2x24x128xbf16>) -> tensor<2x24x2x64xbf16>
    %238 = "loop.transpose"(%12) {perm = [0, 2, 1, 3]} : (tensor<2x24x2x64xbf16>) -> tensor<2x2x24x64xbf16>
    %15 = "loop.rms_norm"(%238, %k_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x2x24x64xbf16>, tensor<64xf32>) -> tensor<2x2x24x64xbf16>
    %16 = "loop.rope"(%15) {dtype = "bf16", max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x24x64xbf16>
    %19 = "loop.reshape"(%18) {type = tensor<2x24x2x64xbf16>} : (tensor<2x24x128xbf16>) -> tensor<2x24x2x64xbf16>
    %20 = "loop.transpose"(%19) {perm = [0, 2, 1, 3]} : (tensor<2x24x2x64xbf16>) -> tensor<2x2x24x64xbf16>
    %21 = "loop.reshape"(%9) {type = tensor<2x2x2x24x64xbf16>} : (tensor<2x4x24x64xbf16>) -> tensor<2x2x2x24x64xbf16>
    %26 = "loop.reshape"(%gate_weight) {type = tensor<2x2x1x64xf32>} : (tensor<4x64xf32>) -> tensor<2x2x1x64xf32>
    %27 = "loop.reshape"(%gate_bias) {type = tensor<2x2x1x1xf32>} : (tensor<4xf32>) -> tensor<2x2x1x1xf32>
    %28 = "loop.cast"(%21) {dtype = "f32"} : (tensor<2x2x2x24x64xbf16>) -> tensor<2x2x2x24x64xf32>
    %29 = "loop.mul"(%28, %26) : (tensor<2x2x2x24x64xf32>, tensor<2x2x1x64xf32>) -> tensor<2x2x2x24x64xf32>
    %30 = "loop.reduce_sum"(%29) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %31 = "loop.add"(%30, %27) : (tensor<2x2x2x24x1xf32>, tensor<2x2x1x1xf32>) -> tensor<2x2x2x24x1xf32>
    %32 = "loop.sigmoid"(%31) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %33 = "loop.reshape"(%16) {type = tensor<2x2x1x24x64xbf16>} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x1x24x64xbf16>
    %34 = "loop.reshape"(%20) {type = tensor<2x2x1x24x64xbf16>} : (tensor<2x2x24x64xbf16>) -> tensor<2x2x1x24x64xbf16>
    %51 = "loop.constant"() {type = tensor<f32>, value = 1.0 : f64} : () -> tensor<f32>
    %52 = "loop.sub"(%51, %32) : (tensor<f32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %79 = "loop.sweep"(%21, %33, %34) {far = 10 : i64, near = 0 : i64, scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>) -> tensor<2x2x2x24x66xf32>
    %80 = "loop.sweep"(%21, %33, %34, %79) {continues = true, near = 10 : i64, scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x66xf32>
    %62 = "loop.add"(%x, %61) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %64 = "loop.rms_norm"(%62, %post_attention_layernorm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xbf16>
    %69 = "loop.silu"(%66) : (tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %88 = "loop.cast"(%d_x) {dtype = "bf16"} : (tensor<2x24x32xf32>) -> tensor<2x24x32xbf16>
    %89 = "loop.matmul"(%88, %down_proj) {dtype = "f32", transpose_b = false} : (tensor<2x24x32xbf16>, tensor<32x40xbf16>) -> tensor<2x24x40xf32>
    %90 = "loop.mul"(%89, %68) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %91 = "loop.mul"(%89, %69) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %92 = "loop.sigmoid"(%66) : (tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %94 = "loop.sub"(%51, %92) : (tensor<f32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %95 = "loop.mul"(%66, %94) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %96 = "loop.add"(%95, %51) : (tensor<2x24x40xf32>, tensor<f32>) -> tensor<2x24x40xf32>
    %97 = "loop.mul"(%96, %92) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %98 = "loop.mul"(%90, %97) : (tensor<2x24x40xf32>, tensor<2x24x40xf32>) -> tensor<2x24x40xf32>
    %99 = "loop.cast"(%91) {dtype = "bf16"} : (tensor<2x24x40xf32>) -> tensor<2x24x40xbf16>
    %100 = "loop.matmul"(%99, %78) {dtype = "f32", transpose_b = false} : (tensor<2x24x40xbf16>, tensor<40x32xbf16>) -> tensor<2x24x32xf32>
    %102 = "loop.reshape"(%64) {type = tensor<48x32xbf16>} : (tensor<2x24x32xbf16>) -> tensor<48x32xbf16>
    %103 = "loop.reshape"(%99) {type = tensor<48x40xbf16>} : (tensor<2x24x40xbf16>) -> tensor<48x40xbf16>
    %104 = "loop.transpose"(%103) {perm = [1, 0]} : (tensor<48x40xbf16>) -> tensor<40x48xbf16>
    %105 = "loop.matmul"(%104, %102) {dtype = "f32", transpose_b = false} : (tensor<40x48xbf16>, tensor<48x32xbf16>) -> tensor<40x32xf32>
    %106 = "loop.cast"(%98) {dtype = "bf16"} : (tensor<2x24x40xf32>) -> tensor<2x24x40xbf16>
    %107 = "loop.matmul"(%106, %gate_proj) {dtype = "f32", transpose_b = false} : (tensor<2x24x40xbf16>, tensor<40x32xbf16>) -> tensor<2x24x32xf32>
    %108 = "loop.add"(%100, %107) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %109 = "loop.rms_scale"(%62) {eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %110 = "loop.mul"(%108, %post_attention_layernorm) : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xf32>
    %111 = "loop.mul"(%110, %62) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %112 = "loop.reduce_sum"(%111) {axis = 2 : i64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %113 = "loop.constant"() {type = tensor<f32>, value = 0.03125 : f64} : () -> tensor<f32>
    %114 = "loop.mul"(%112, %113) : (tensor<2x24x1xf32>, tensor<f32>) -> tensor<2x24x1xf32>
    %115 = "loop.mul"(%109, %109) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %116 = "loop.mul"(%114, %115) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %117 = "loop.mul"(%62, %116) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %118 = "loop.sub"(%110, %117) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %119 = "loop.mul"(%118, %109) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %120 = "loop.add"(%d_x, %119) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %121 = "loop.cast"(%120) {dtype = "bf16"} : (tensor<2x24x32xf32>) -> tensor<2x24x32xbf16>
    %122 = "loop.matmul"(%121, %o_proj) {dtype = "f32", transpose_b = false} : (tensor<2x24x32xbf16>, tensor<32x256xbf16>) -> tensor<2x24x256xf32>
    %123 = "loop.reshape"(%122) {type = tensor<2x24x4x64xf32>} : (tensor<2x24x256xf32>) -> tensor<2x24x4x64xf32>
    %124 = "loop.transpose"(%123) {perm = [0, 2, 1, 3]} : (tensor<2x24x4x64xf32>) -> tensor<2x4x24x64xf32>
    %125 = "loop.reshape"(%124) {type = tensor<2x2x2x24x64xf32>} : (tensor<2x4x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %126 = "loop.mul"(%125, %83) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %127 = "loop.reduce_sum"(%126) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %128 = "loop.mul"(%125, %52) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x64xf32>
    %129 = "loop.mul"(%128, %83) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %130 = "loop.reduce_sum"(%129) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %131 = "loop.neg"(%130) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %132 = "loop.mul"(%125, %81) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %133 = "loop.reduce_sum"(%132) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %134 = "loop.mul"(%125, %32) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x64xf32>
    %135 = "loop.mul"(%134, %81) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %136 = "loop.reduce_sum"(%135) {axis = 4 : i64} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x1xf32>
    %137 = "loop.neg"(%136) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %138 = "loop.lse"(%80) : (tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x1xf32>
    %139 = "loop.lse"(%79) : (tensor<2x2x2x24x66xf32>) -> tensor<2x2x2x24x1xf32>
    %140 = "loop.sub"(%139, %138) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %141 = "loop.exp"(%140) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %142 = "loop.mul"(%134, %141) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x64xf32>
    %143 = "loop.mul"(%137, %141) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %144 = "loop.add"(%128, %142) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %145 = "loop.add"(%131, %143) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %147 = "loop.cast"(%134) {dtype = "bf16"} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xbf16>
    %148 = "loop.cast"(%144) {dtype = "bf16"} : (tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xbf16>
    %149 = "loop.sweep_gradient"(%21, %33, %34, %147, %137, %138, %148, %145, %139) {far = [9223372036854775807, 10], near = [10, 0], of = "q", scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x64xf32>
    %150 = "loop.sweep_gradient"(%21, %33, %34, %147, %137, %138, %148, %145, %139) {far = [9223372036854775807, 10], near = [10, 0], of = "k", scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x1x24x64xf32>
    %151 = "loop.sweep_gradient"(%21, %33, %34, %147, %137, %138, %148, %145, %139) {far = [9223372036854775807, 10], near = [10, 0], of = "v", scale = 0.125 : f64} : (tensor<2x2x2x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x1x24x64xbf16>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x64xbf16>, tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x1x24x64xf32>
    %152 = "loop.neg"(%127) : (tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %153 = "loop.add"(%133, %152) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %154 = "loop.reshape"(%151) {type = tensor<2x2x24x64xf32>} : (tensor<2x2x1x24x64xf32>) -> tensor<2x2x24x64xf32>
    %155 = "loop.reshape"(%150) {type = tensor<2x2x24x64xf32>} : (tensor<2x2x1x24x64xf32>) -> tensor<2x2x24x64xf32>
    %159 = "loop.mul"(%153, %32) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %160 = "loop.mul"(%159, %52) : (tensor<2x2x2x24x1xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x1xf32>
    %161 = "loop.reduce_sum"(%160) {axis = 0 : i64} : (tensor<2x2x2x24x1xf32>) -> tensor<1x2x2x24x1xf32>
    %162 = "loop.reduce_sum"(%161) {axis = 3 : i64} : (tensor<1x2x2x24x1xf32>) -> tensor<1x2x2x1x1xf32>
    %163 = "loop.reshape"(%162) {type = tensor<2x2x1x1xf32>} : (tensor<1x2x2x1x1xf32>) -> tensor<2x2x1x1xf32>
    %164 = "loop.constant"() {type = tensor<2x2x2x24x64xf32>, value = 0.0 : f64} : () -> tensor<2x2x2x24x64xf32>
    %165 = "loop.add"(%164, %160) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x1xf32>) -> tensor<2x2x2x24x64xf32>
    %166 = "loop.mul"(%165, %26) : (tensor<2x2x2x24x64xf32>, tensor<2x2x1x64xf32>) -> tensor<2x2x2x24x64xf32>
    %167 = "loop.add"(%149, %166) : (tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> tensor<2x2x2x24x64xf32>
    %168 = "loop.reshape"(%163) {type = tensor<4xf32>} : (tensor<2x2x1x1xf32>) -> tensor<4xf32>
    %169 = "loop.reshape"(%167) {type = tensor<2x4x24x64xf32>} : (tensor<2x2x2x24x64xf32>) -> tensor<2x4x24x64xf32>
    %170 = "loop.transpose"(%154) {perm = [0, 2, 1, 3]} : (tensor<2x2x24x64xf32>) -> tensor<2x24x2x64xf32>
    %171 = "loop.reshape"(%170) {type = tensor<2x24x128xf32>} : (tensor<2x24x2x64xf32>) -> tensor<2x24x128xf32>
    %172 = "loop.cast"(%171) {dtype = "bf16"} : (tensor<2x24x128xf32>) -> tensor<2x24x128xbf16>
    %173 = "loop.matmul"(%172, %77) {dtype = "f32", transpose_b = false} : (tensor<2x24x128xbf16>, tensor<128x32xbf16>) -> tensor<2x24x32xf32>
    %175 = "loop.reshape"(%2) {type = tensor<48x32xbf16>} : (tensor<2x24x32xbf16>) -> tensor<48x32xbf16>
    %176 = "loop.reshape"(%172) {type = tensor<48x128xbf16>} : (tensor<2x24x128xbf16>) -> tensor<48x128xbf16>
    %177 = "loop.transpose"(%176) {perm = [1, 0]} : (tensor<48x128xbf16>) -> tensor<128x48xbf16>
    %178 = "loop.matmul"(%177, %175) {dtype = "f32", transpose_b = false} : (tensor<128x48xbf16>, tensor<48x32xbf16>) -> tensor<128x32xf32>
    %179 = "loop.rope"(%155) {dtype = "f32", inverse = true, max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x2x24x64xf32>) -> tensor<2x2x24x64xf32>
    %180 = "loop.transpose"(%179) {perm = [0, 2, 1, 3]} : (tensor<2x2x24x64xf32>) -> tensor<2x24x2x64xf32>
    %181 = "loop.cast"(%12) {dtype = "f32"} : (tensor<2x24x2x64xbf16>) -> tensor<2x24x2x64xf32>
    %182 = "loop.rms_scale"(%12) {eps = 1.0e-6 : f64} : (tensor<2x24x2x64xbf16>) -> tensor<2x24x2x1xf32>
    %183 = "loop.mul"(%180, %k_norm) : (tensor<2x24x2x64xf32>, tensor<64xf32>) -> tensor<2x24x2x64xf32>
    %184 = "loop.mul"(%183, %181) : (tensor<2x24x2x64xf32>, tensor<2x24x2x64xf32>) -> tensor<2x24x2x64xf32>
    %185 = "loop.reduce_sum"(%184) {axis = 3 : i64} : (tensor<2x24x2x64xf32>) -> tensor<2x24x2x1xf32>
    %186 = "loop.constant"() {type = tensor<f32>, value = 0.015625 : f64} : () -> tensor<f32>
    %187 = "loop.mul"(%185, %186) : (tensor<2x24x2x1xf32>, tensor<f32>) -> tensor<2x24x2x1xf32>
    %188 = "loop.mul"(%182, %182) : (tensor<2x24x2x1xf32>, tensor<2x24x2x1xf32>) -> tensor<2x24x2x1xf32>
    %189 = "loop.mul"(%187, %188) : (tensor<2x24x2x1xf32>, tensor<2x24x2x1xf32>) -> tensor<2x24x2x1xf32>
    %190 = "loop.mul"(%181, %189) : (tensor<2x24x2x64xf32>, tensor<2x24x2x1xf32>) -> tensor<2x24x2x64xf32>
    %191 = "loop.sub"(%183, %190) : (tensor<2x24x2x64xf32>, tensor<2x24x2x64xf32>) -> tensor<2x24x2x64xf32>
    %192 = "loop.mul"(%191, %182) : (tensor<2x24x2x64xf32>, tensor<2x24x2x1xf32>) -> tensor<2x24x2x64xf32>
    %193 = "loop.reshape"(%192) {type = tensor<2x24x128xf32>} : (tensor<2x24x2x64xf32>) -> tensor<2x24x128xf32>
    %194 = "loop.cast"(%193) {dtype = "bf16"} : (tensor<2x24x128xf32>) -> tensor<2x24x128xbf16>
    %195 = "loop.matmul"(%194, %76) {dtype = "f32", transpose_b = false} : (tensor<2x24x128xbf16>, tensor<128x32xbf16>) -> tensor<2x24x32xf32>
    %196 = "loop.add"(%173, %195) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %199 = "loop.reshape"(%194) {type = tensor<48x128xbf16>} : (tensor<2x24x128xbf16>) -> tensor<48x128xbf16>
    %200 = "loop.transpose"(%199) {perm = [1, 0]} : (tensor<48x128xbf16>) -> tensor<128x48xbf16>
    %201 = "loop.matmul"(%200, %175) {dtype = "f32", transpose_b = false} : (tensor<128x48xbf16>, tensor<48x32xbf16>) -> tensor<128x32xf32>
    %202 = "loop.rope"(%169) {dtype = "f32", inverse = true, max = 24 : i64, theta = 10000.0 : f64} : (tensor<2x4x24x64xf32>) -> tensor<2x4x24x64xf32>
    %203 = "loop.transpose"(%202) {perm = [0, 2, 1, 3]} : (tensor<2x4x24x64xf32>) -> tensor<2x24x4x64xf32>
    %204 = "loop.cast"(%5) {dtype = "f32"} : (tensor<2x24x4x64xbf16>) -> tensor<2x24x4x64xf32>
    %205 = "loop.rms_scale"(%5) {eps = 1.0e-6 : f64} : (tensor<2x24x4x64xbf16>) -> tensor<2x24x4x1xf32>
    %206 = "loop.mul"(%203, %q_norm) : (tensor<2x24x4x64xf32>, tensor<64xf32>) -> tensor<2x24x4x64xf32>
    %207 = "loop.mul"(%206, %204) : (tensor<2x24x4x64xf32>, tensor<2x24x4x64xf32>) -> tensor<2x24x4x64xf32>
    %208 = "loop.reduce_sum"(%207) {axis = 3 : i64} : (tensor<2x24x4x64xf32>) -> tensor<2x24x4x1xf32>
    %210 = "loop.mul"(%208, %186) : (tensor<2x24x4x1xf32>, tensor<f32>) -> tensor<2x24x4x1xf32>
    %211 = "loop.mul"(%205, %205) : (tensor<2x24x4x1xf32>, tensor<2x24x4x1xf32>) -> tensor<2x24x4x1xf32>
    %212 = "loop.mul"(%210, %211) : (tensor<2x24x4x1xf32>, tensor<2x24x4x1xf32>) -> tensor<2x24x4x1xf32>
    %213 = "loop.mul"(%204, %212) : (tensor<2x24x4x64xf32>, tensor<2x24x4x1xf32>) -> tensor<2x24x4x64xf32>
    %214 = "loop.sub"(%206, %213) : (tensor<2x24x4x64xf32>, tensor<2x24x4x64xf32>) -> tensor<2x24x4x64xf32>
    %215 = "loop.mul"(%214, %205) : (tensor<2x24x4x64xf32>, tensor<2x24x4x1xf32>) -> tensor<2x24x4x64xf32>
    %216 = "loop.reshape"(%215) {type = tensor<2x24x256xf32>} : (tensor<2x24x4x64xf32>) -> tensor<2x24x256xf32>
    %217 = "loop.cast"(%216) {dtype = "bf16"} : (tensor<2x24x256xf32>) -> tensor<2x24x256xbf16>
    %218 = "loop.matmul"(%217, %75) {dtype = "f32", transpose_b = false} : (tensor<2x24x256xbf16>, tensor<256x32xbf16>) -> tensor<2x24x32xf32>
    %219 = "loop.add"(%196, %218) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %222 = "loop.reshape"(%217) {type = tensor<48x256xbf16>} : (tensor<2x24x256xbf16>) -> tensor<48x256xbf16>
    %223 = "loop.transpose"(%222) {perm = [1, 0]} : (tensor<48x256xbf16>) -> tensor<256x48xbf16>
    %224 = "loop.matmul"(%223, %175) {dtype = "f32", transpose_b = false} : (tensor<256x48xbf16>, tensor<48x32xbf16>) -> tensor<256x32xf32>
    %225 = "loop.rms_scale"(%x) {eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %226 = "loop.mul"(%219, %input_layernorm) : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xf32>
    %227 = "loop.mul"(%226, %x) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %228 = "loop.reduce_sum"(%227) {axis = 2 : i64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %230 = "loop.mul"(%228, %113) : (tensor<2x24x1xf32>, tensor<f32>) -> tensor<2x24x1xf32>
    %231 = "loop.mul"(%225, %225) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %232 = "loop.mul"(%230, %231) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %233 = "loop.mul"(%x, %232) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %234 = "loop.sub"(%226, %233) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %235 = "loop.mul"(%234, %225) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %236 = "loop.add"(%120, %235) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    return %236, %168, %105, %201, %224, %178 : tensor<2x24x32xf32>, tensor<4xf32>, tensor<40x32xf32>, tensor<128x32xf32>, tensor<256x32xf32>, tensor<128x32xf32>
  }

  func.func @train_step(
    %tokens: tensor<2x24xi32> {loop.input = "tokens"},
    %targets: tensor<2x24xi32> {loop.input = "targets"},
    %weights: tensor<2x24xf32> {loop.input = "weights"},
    %embed_tokens: tensor<320x32xf32> {loop.state = "param.model.embed_tokens.weight"},
    %norm: tensor<32xf32> {loop.weight = "model.norm.weight"},
    %hyper: tensor<14xf32> {loop.input = "hyper"},
    %m_model_embed_tokens_weight: tensor<320x32xf32> {loop.state = "m.model.embed_tokens.weight"},
    %v_model_embed_tokens_weight: tensor<320x32xf32> {loop.state = "v.model.embed_tokens.weight"},
    %m_model_gate_projections_0_bias: tensor<4xf32> {loop.state = "m.model.gate_projections.0.bias"},
    %v_model_gate_projections_0_bias: tensor<4xf32> {loop.state = "v.model.gate_projections.0.bias"},
    %param_model_gate_projections_0_bias: tensor<4xf32> {loop.state = "param.model.gate_projections.0.bias"},
    %m_model_layers_0_mlp_up_proj_weight: tensor<40x32xf32> {loop.state = "m.model.layers.0.mlp.up_proj.weight"},
    %v_model_layers_0_mlp_up_proj_weight: tensor<40x32xf32> {loop.state = "v.model.layers.0.mlp.up_proj.weight"},
    %param_model_layers_0_mlp_up_proj_weight: tensor<40x32xf32> {loop.state = "param.model.layers.0.mlp.up_proj.weight"},
    %m_model_layers_0_self_attn_k_proj_weight: tensor<128x32xf32> {loop.state = "m.model.layers.0.self_attn.k_proj.weight"},
    %v_model_layers_0_self_attn_k_proj_weight: tensor<128x32xf32> {loop.state = "v.model.layers.0.self_attn.k_proj.weight"},
    %param_model_layers_0_self_attn_k_proj_weight: tensor<128x32xf32> {loop.state = "param.model.layers.0.self_attn.k_proj.weight"},
    %m_model_layers_0_self_attn_q_proj_weight: tensor<256x32xf32> {loop.state = "m.model.layers.0.self_attn.q_proj.weight"},
    %v_model_layers_0_self_attn_q_proj_weight: tensor<256x32xf32> {loop.state = "v.model.layers.0.self_attn.q_proj.weight"},
    %param_model_layers_0_self_attn_q_proj_weight: tensor<256x32xf32> {loop.state = "param.model.layers.0.self_attn.q_proj.weight"},
    %m_model_layers_0_self_attn_v_proj_weight: tensor<128x32xf32> {loop.state = "m.model.layers.0.self_attn.v_proj.weight"},
    %v_model_layers_0_self_attn_v_proj_weight: tensor<128x32xf32> {loop.state = "v.model.layers.0.self_attn.v_proj.weight"},
    %param_model_layers_0_self_attn_v_proj_weight: tensor<128x32xf32> {loop.state = "param.model.layers.0.self_attn.v_proj.weight"}
  ) -> (tensor<1x1xf32> {loop.name = "loss"}, tensor<1x1xf32> {loop.name = "norm"}) {
    %20 = "loop.constant"() {type = tensor<1x1xf32>, value = 1.0 : f64} : () -> tensor<1x1xf32>
    %21 = "loop.constant"() {type = tensor<1x48xf32>, value = 0.0 : f64} : () -> tensor<1x48xf32>
    %45 = "loop.constant"() {type = tensor<f32>, value = 0.03125 : f64} : () -> tensor<f32>
    %10 = "loop.reshape"(%targets) {type = tensor<1x48xi32>} : (tensor<2x24xi32>) -> tensor<1x48xi32>
    %13 = "loop.slice"(%10) {axis = 1 : i64, begin = 0 : i64, type = tensor<1x48xi32>} : (tensor<1x48xi32>) -> tensor<1x48xi32>
    %25 = "loop.is_target"(%13) : (tensor<1x48xi32>) -> tensor<1x48x1xf32>
    %30 = "loop.one_hot"(%13) {type = tensor<1x48x320xf32>} : (tensor<1x48xi32>) -> tensor<1x48x320xf32>
    %11 = "loop.reshape"(%weights) {type = tensor<1x48xf32>} : (tensor<2x24xf32>) -> tensor<1x48xf32>
    %14 = "loop.slice"(%11) {axis = 1 : i64, begin = 0 : i64, type = tensor<1x48xf32>} : (tensor<1x48xf32>) -> tensor<1x48xf32>
    %22 = "loop.add"(%21, %20) : (tensor<1x48xf32>, tensor<1x1xf32>) -> tensor<1x48xf32>
    %23 = "loop.mul"(%22, %14) : (tensor<1x48xf32>, tensor<1x48xf32>) -> tensor<1x48xf32>
    %24 = "loop.reshape"(%23) {type = tensor<1x48x1xf32>} : (tensor<1x48xf32>) -> tensor<1x48x1xf32>
    %26 = "loop.mul"(%24, %25) : (tensor<1x48x1xf32>, tensor<1x48x1xf32>) -> tensor<1x48x1xf32>
    %4 = "loop.embed"(%embed_tokens, %tokens) {dtype = "f32"} : (tensor<320x32xf32>, tensor<2x24xi32>) -> tensor<2x24x32xf32>
    %19 = "loop.cast"(%embed_tokens) {dtype = "bf16"} : (tensor<320x32xf32>) -> tensor<320x32xbf16>
    %5, %52, %53, %54, %55, %56, %57, %58, %59 = "loop.call"(%4) {callee = "layer_full_keeping", layer = 0 : i64} : (tensor<2x24x32xf32>) -> (tensor<2x24x32xf32>, tensor<2x24x256xbf16>, tensor<2x24x128xbf16>, tensor<2x24x128xbf16>, tensor<2x24x32xf32>, tensor<2x24x40xf32>, tensor<2x24x40xf32>, tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>)
    %41 = "loop.rms_scale"(%5) {eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %47 = "loop.mul"(%41, %41) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %7 = "loop.rms_norm"(%5, %norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xbf16>
    %9 = "loop.reshape"(%7) {type = tensor<1x48x32xbf16>} : (tensor<2x24x32xbf16>) -> tensor<1x48x32xbf16>
    %12 = "loop.slice"(%9) {axis = 1 : i64, begin = 0 : i64, type = tensor<1x48x32xbf16>} : (tensor<1x48x32xbf16>) -> tensor<1x48x32xbf16>
    %36 = "loop.reshape"(%12) {type = tensor<48x32xbf16>} : (tensor<1x48x32xbf16>) -> tensor<48x32xbf16>
    %15 = "loop.matmul"(%12, %19) {dtype = "f32", transpose_b = true} : (tensor<1x48x32xbf16>, tensor<320x32xbf16>) -> tensor<1x48x320xf32>
    %16 = "loop.cross_entropy"(%15, %13) : (tensor<1x48x320xf32>, tensor<1x48xi32>) -> tensor<1x48xf32>
    %17 = "loop.mul"(%16, %14) : (tensor<1x48xf32>, tensor<1x48xf32>) -> tensor<1x48xf32>
    %18 = "loop.reduce_sum"(%17) {axis = 1 : i64} : (tensor<1x48xf32>) -> tensor<1x1xf32>
    %27 = "loop.log_sum_exp"(%15) : (tensor<1x48x320xf32>) -> tensor<1x48x1xf32>
    %28 = "loop.sub"(%15, %27) : (tensor<1x48x320xf32>, tensor<1x48x1xf32>) -> tensor<1x48x320xf32>
    %29 = "loop.exp"(%28) : (tensor<1x48x320xf32>) -> tensor<1x48x320xf32>
    %31 = "loop.sub"(%29, %30) : (tensor<1x48x320xf32>, tensor<1x48x320xf32>) -> tensor<1x48x320xf32>
    %32 = "loop.mul"(%31, %26) : (tensor<1x48x320xf32>, tensor<1x48x1xf32>) -> tensor<1x48x320xf32>
    %33 = "loop.cast"(%32) {dtype = "bf16"} : (tensor<1x48x320xf32>) -> tensor<1x48x320xbf16>
    %34 = "loop.matmul"(%33, %19) {dtype = "f32", transpose_b = false} : (tensor<1x48x320xbf16>, tensor<320x32xbf16>) -> tensor<1x48x32xf32>
    %37 = "loop.reshape"(%33) {type = tensor<48x320xbf16>} : (tensor<1x48x320xbf16>) -> tensor<48x320xbf16>
    %38 = "loop.transpose"(%37) {perm = [1, 0]} : (tensor<48x320xbf16>) -> tensor<320x48xbf16>
    %40 = "loop.reshape"(%34) {type = tensor<2x24x32xf32>} : (tensor<1x48x32xf32>) -> tensor<2x24x32xf32>
    %42 = "loop.mul"(%40, %norm) : (tensor<2x24x32xf32>, tensor<32xf32>) -> tensor<2x24x32xf32>
    %43 = "loop.mul"(%42, %5) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %44 = "loop.reduce_sum"(%43) {axis = 2 : i64} : (tensor<2x24x32xf32>) -> tensor<2x24x1xf32>
    %46 = "loop.mul"(%44, %45) : (tensor<2x24x1xf32>, tensor<f32>) -> tensor<2x24x1xf32>
    %48 = "loop.mul"(%46, %47) : (tensor<2x24x1xf32>, tensor<2x24x1xf32>) -> tensor<2x24x1xf32>
    %49 = "loop.mul"(%5, %48) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %50 = "loop.sub"(%42, %49) : (tensor<2x24x32xf32>, tensor<2x24x32xf32>) -> tensor<2x24x32xf32>
    %51 = "loop.mul"(%50, %41) : (tensor<2x24x32xf32>, tensor<2x24x1xf32>) -> tensor<2x24x32xf32>
    %60, %61, %62, %63, %64, %65 = "loop.call"(%4, %51, %52, %53, %54, %55, %56, %57, %58, %59) {callee = "layer_full_backward", layer = 0 : i64} : (tensor<2x24x32xf32>, tensor<2x24x32xf32>, tensor<2x24x256xbf16>, tensor<2x24x128xbf16>, tensor<2x24x128xbf16>, tensor<2x24x32xf32>, tensor<2x24x40xf32>, tensor<2x24x40xf32>, tensor<2x2x2x24x64xf32>, tensor<2x2x2x24x64xf32>) -> (tensor<2x24x32xf32>, tensor<4xf32>, tensor<40x32xf32>, tensor<128x32xf32>, tensor<256x32xf32>, tensor<128x32xf32>)
    %39 = "loop.matmul"(%38, %36) {dtype = "f32", transpose_b = false} : (tensor<320x48xbf16>, tensor<48x32xbf16>) -> tensor<320x32xf32>
    %66 = "loop.scatter_rows"(%60, %tokens) {type = tensor<320x32xf32>} : (tensor<2x24x32xf32>, tensor<2x24xi32>) -> tensor<320x32xf32>
    %67 = "loop.add"(%66, %39) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %69 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 0 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %70 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 1 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %71 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 2 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %72 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 3 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %73 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 4 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %74 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 5 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %75 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 6 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %76 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 7 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %77 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 8 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %79 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 10 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %80 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 11 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %82 = "loop.slice"(%hyper) {axis = 0 : i64, begin = 13 : i64, type = tensor<1xf32>} : (tensor<14xf32>) -> tensor<1xf32>
    %83 = "loop.mul"(%67, %67) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %84 = "loop.reduce_sum"(%83) {axis = 1 : i64} : (tensor<320x32xf32>) -> tensor<320x1xf32>
    %85 = "loop.reduce_sum"(%84) {axis = 0 : i64} : (tensor<320x1xf32>) -> tensor<1x1xf32>
    %86 = "loop.reshape"(%85) {type = tensor<1xf32>} : (tensor<1x1xf32>) -> tensor<1xf32>
    %87 = "loop.mul"(%61, %61) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %88 = "loop.reduce_sum"(%87) {axis = 0 : i64} : (tensor<4xf32>) -> tensor<1xf32>
    %89 = "loop.reshape"(%88) {type = tensor<1xf32>} : (tensor<1xf32>) -> tensor<1xf32>
    %90 = "loop.add"(%86, %89) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %91 = "loop.mul"(%62, %62) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %92 = "loop.reduce_sum"(%91) {axis = 1 : i64} : (tensor<40x32xf32>) -> tensor<40x1xf32>
    %93 = "loop.reduce_sum"(%92) {axis = 0 : i64} : (tensor<40x1xf32>) -> tensor<1x1xf32>
    %94 = "loop.reshape"(%93) {type = tensor<1xf32>} : (tensor<1x1xf32>) -> tensor<1xf32>
    %95 = "loop.add"(%90, %94) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %96 = "loop.mul"(%63, %63) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %97 = "loop.reduce_sum"(%96) {axis = 1 : i64} : (tensor<128x32xf32>) -> tensor<128x1xf32>
    %98 = "loop.reduce_sum"(%97) {axis = 0 : i64} : (tensor<128x1xf32>) -> tensor<1x1xf32>
    %99 = "loop.reshape"(%98) {type = tensor<1xf32>} : (tensor<1x1xf32>) -> tensor<1xf32>
    %100 = "loop.add"(%95, %99) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %101 = "loop.mul"(%64, %64) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %102 = "loop.reduce_sum"(%101) {axis = 1 : i64} : (tensor<256x32xf32>) -> tensor<256x1xf32>
    %103 = "loop.reduce_sum"(%102) {axis = 0 : i64} : (tensor<256x1xf32>) -> tensor<1x1xf32>
    %104 = "loop.reshape"(%103) {type = tensor<1xf32>} : (tensor<1x1xf32>) -> tensor<1xf32>
    %105 = "loop.add"(%100, %104) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %106 = "loop.mul"(%65, %65) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %107 = "loop.reduce_sum"(%106) {axis = 1 : i64} : (tensor<128x32xf32>) -> tensor<128x1xf32>
    %108 = "loop.reduce_sum"(%107) {axis = 0 : i64} : (tensor<128x1xf32>) -> tensor<1x1xf32>
    %109 = "loop.reshape"(%108) {type = tensor<1xf32>} : (tensor<1x1xf32>) -> tensor<1xf32>
    %110 = "loop.add"(%105, %109) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %111 = "loop.constant"() {type = tensor<f32>, value = 1.0e-30 : f64} : () -> tensor<f32>
    %112 = "loop.max"(%110, %111) : (tensor<1xf32>, tensor<f32>) -> tensor<1xf32>
    %113 = "loop.rsqrt"(%112) : (tensor<1xf32>) -> tensor<1xf32>
    %114 = "loop.mul"(%110, %113) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %115 = "loop.max"(%114, %74) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %116 = "loop.div"(%74, %115) : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
    %117 = "loop.mul"(%67, %116) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %119 = "loop.mul"(%m_model_embed_tokens_weight, %69) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %120 = "loop.mul"(%117, %70) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %121 = "loop.add"(%119, %120) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %122 = "loop.update"(%m_model_embed_tokens_weight, %121) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %123 = "loop.mul"(%117, %117) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %125 = "loop.mul"(%v_model_embed_tokens_weight, %71) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %126 = "loop.mul"(%123, %72) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %127 = "loop.add"(%125, %126) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %128 = "loop.update"(%v_model_embed_tokens_weight, %127) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %129 = "loop.mul"(%122, %75) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %130 = "loop.mul"(%128, %76) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %131 = "loop.max"(%130, %111) : (tensor<320x32xf32>, tensor<f32>) -> tensor<320x32xf32>
    %132 = "loop.rsqrt"(%131) : (tensor<320x32xf32>) -> tensor<320x32xf32>
    %133 = "loop.mul"(%130, %132) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %134 = "loop.add"(%133, %73) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %135 = "loop.div"(%129, %134) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %136 = "loop.mul"(%embed_tokens, %82) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %137 = "loop.add"(%135, %136) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %138 = "loop.mul"(%137, %79) : (tensor<320x32xf32>, tensor<1xf32>) -> tensor<320x32xf32>
    %139 = "loop.sub"(%embed_tokens, %138) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %140 = "loop.update"(%embed_tokens, %139) : (tensor<320x32xf32>, tensor<320x32xf32>) -> tensor<320x32xf32>
    %141 = "loop.mul"(%61, %116) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %143 = "loop.mul"(%m_model_gate_projections_0_bias, %69) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %144 = "loop.mul"(%141, %70) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %145 = "loop.add"(%143, %144) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %146 = "loop.update"(%m_model_gate_projections_0_bias, %145) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %147 = "loop.mul"(%141, %141) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %149 = "loop.mul"(%v_model_gate_projections_0_bias, %71) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %150 = "loop.mul"(%147, %72) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %151 = "loop.add"(%149, %150) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %152 = "loop.update"(%v_model_gate_projections_0_bias, %151) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %154 = "loop.mul"(%146, %75) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %155 = "loop.mul"(%152, %76) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %156 = "loop.max"(%155, %111) : (tensor<4xf32>, tensor<f32>) -> tensor<4xf32>
    %157 = "loop.rsqrt"(%156) : (tensor<4xf32>) -> tensor<4xf32>
    %158 = "loop.mul"(%155, %157) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %159 = "loop.add"(%158, %73) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %160 = "loop.div"(%154, %159) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %161 = "loop.mul"(%param_model_gate_projections_0_bias, %80) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %162 = "loop.add"(%160, %161) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %163 = "loop.mul"(%162, %77) : (tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
    %164 = "loop.sub"(%param_model_gate_projections_0_bias, %163) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %165 = "loop.update"(%param_model_gate_projections_0_bias, %164) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %166 = "loop.mul"(%62, %116) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %168 = "loop.mul"(%m_model_layers_0_mlp_up_proj_weight, %69) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %169 = "loop.mul"(%166, %70) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %170 = "loop.add"(%168, %169) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %171 = "loop.update"(%m_model_layers_0_mlp_up_proj_weight, %170) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %172 = "loop.mul"(%166, %166) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %174 = "loop.mul"(%v_model_layers_0_mlp_up_proj_weight, %71) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %175 = "loop.mul"(%172, %72) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %176 = "loop.add"(%174, %175) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %177 = "loop.update"(%v_model_layers_0_mlp_up_proj_weight, %176) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %179 = "loop.mul"(%171, %75) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %180 = "loop.mul"(%177, %76) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %181 = "loop.max"(%180, %111) : (tensor<40x32xf32>, tensor<f32>) -> tensor<40x32xf32>
    %182 = "loop.rsqrt"(%181) : (tensor<40x32xf32>) -> tensor<40x32xf32>
    %183 = "loop.mul"(%180, %182) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %184 = "loop.add"(%183, %73) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %185 = "loop.div"(%179, %184) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %186 = "loop.mul"(%param_model_layers_0_mlp_up_proj_weight, %82) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %187 = "loop.add"(%185, %186) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %188 = "loop.mul"(%187, %79) : (tensor<40x32xf32>, tensor<1xf32>) -> tensor<40x32xf32>
    %189 = "loop.sub"(%param_model_layers_0_mlp_up_proj_weight, %188) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %190 = "loop.update"(%param_model_layers_0_mlp_up_proj_weight, %189) : (tensor<40x32xf32>, tensor<40x32xf32>) -> tensor<40x32xf32>
    %191 = "loop.mul"(%63, %116) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %193 = "loop.mul"(%m_model_layers_0_self_attn_k_proj_weight, %69) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %194 = "loop.mul"(%191, %70) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %195 = "loop.add"(%193, %194) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %196 = "loop.update"(%m_model_layers_0_self_attn_k_proj_weight, %195) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %197 = "loop.mul"(%191, %191) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %199 = "loop.mul"(%v_model_layers_0_self_attn_k_proj_weight, %71) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %200 = "loop.mul"(%197, %72) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %201 = "loop.add"(%199, %200) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %202 = "loop.update"(%v_model_layers_0_self_attn_k_proj_weight, %201) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %204 = "loop.mul"(%196, %75) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %205 = "loop.mul"(%202, %76) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %206 = "loop.max"(%205, %111) : (tensor<128x32xf32>, tensor<f32>) -> tensor<128x32xf32>
    %207 = "loop.rsqrt"(%206) : (tensor<128x32xf32>) -> tensor<128x32xf32>
    %208 = "loop.mul"(%205, %207) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %209 = "loop.add"(%208, %73) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %210 = "loop.div"(%204, %209) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %211 = "loop.mul"(%param_model_layers_0_self_attn_k_proj_weight, %82) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %212 = "loop.add"(%210, %211) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %213 = "loop.mul"(%212, %79) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %214 = "loop.sub"(%param_model_layers_0_self_attn_k_proj_weight, %213) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %215 = "loop.update"(%param_model_layers_0_self_attn_k_proj_weight, %214) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %216 = "loop.mul"(%64, %116) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %218 = "loop.mul"(%m_model_layers_0_self_attn_q_proj_weight, %69) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %219 = "loop.mul"(%216, %70) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %220 = "loop.add"(%218, %219) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %221 = "loop.update"(%m_model_layers_0_self_attn_q_proj_weight, %220) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %222 = "loop.mul"(%216, %216) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %224 = "loop.mul"(%v_model_layers_0_self_attn_q_proj_weight, %71) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %225 = "loop.mul"(%222, %72) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %226 = "loop.add"(%224, %225) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %227 = "loop.update"(%v_model_layers_0_self_attn_q_proj_weight, %226) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %229 = "loop.mul"(%221, %75) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %230 = "loop.mul"(%227, %76) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %231 = "loop.max"(%230, %111) : (tensor<256x32xf32>, tensor<f32>) -> tensor<256x32xf32>
    %232 = "loop.rsqrt"(%231) : (tensor<256x32xf32>) -> tensor<256x32xf32>
    %233 = "loop.mul"(%230, %232) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %234 = "loop.add"(%233, %73) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %235 = "loop.div"(%229, %234) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %236 = "loop.mul"(%param_model_layers_0_self_attn_q_proj_weight, %82) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %237 = "loop.add"(%235, %236) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %238 = "loop.mul"(%237, %79) : (tensor<256x32xf32>, tensor<1xf32>) -> tensor<256x32xf32>
    %239 = "loop.sub"(%param_model_layers_0_self_attn_q_proj_weight, %238) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %240 = "loop.update"(%param_model_layers_0_self_attn_q_proj_weight, %239) : (tensor<256x32xf32>, tensor<256x32xf32>) -> tensor<256x32xf32>
    %241 = "loop.mul"(%65, %116) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %243 = "loop.mul"(%m_model_layers_0_self_attn_v_proj_weight, %69) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %244 = "loop.mul"(%241, %70) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %245 = "loop.add"(%243, %244) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %246 = "loop.update"(%m_model_layers_0_self_attn_v_proj_weight, %245) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %247 = "loop.mul"(%241, %241) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %249 = "loop.mul"(%v_model_layers_0_self_attn_v_proj_weight, %71) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %250 = "loop.mul"(%247, %72) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %251 = "loop.add"(%249, %250) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %252 = "loop.update"(%v_model_layers_0_self_attn_v_proj_weight, %251) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %254 = "loop.mul"(%246, %75) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %255 = "loop.mul"(%252, %76) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %256 = "loop.max"(%255, %111) : (tensor<128x32xf32>, tensor<f32>) -> tensor<128x32xf32>
    %257 = "loop.rsqrt"(%256) : (tensor<128x32xf32>) -> tensor<128x32xf32>
    %258 = "loop.mul"(%255, %257) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %259 = "loop.add"(%258, %73) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %260 = "loop.div"(%254, %259) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %261 = "loop.mul"(%param_model_layers_0_self_attn_v_proj_weight, %82) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %262 = "loop.add"(%260, %261) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %263 = "loop.mul"(%262, %79) : (tensor<128x32xf32>, tensor<1xf32>) -> tensor<128x32xf32>
    %264 = "loop.sub"(%param_model_layers_0_self_attn_v_proj_weight, %263) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %265 = "loop.update"(%param_model_layers_0_self_attn_v_proj_weight, %264) : (tensor<128x32xf32>, tensor<128x32xf32>) -> tensor<128x32xf32>
    %266 = "loop.reshape"(%114) {type = tensor<1x1xf32>} : (tensor<1xf32>) -> tensor<1x1xf32>
    return %18, %266 : tensor<1x1xf32>, tensor<1x1xf32>
  }
}
