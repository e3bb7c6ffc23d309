// A token's attention behind its product: what norms, rotates and stores queries, keys and values can be the attention's beginning. A window and
// all keys from one cache (`layer`), and from two, one of them a ring (`stack`).
module {
  func.func @one_cache(
    %qkv: tensor<?x1x128xbf16, ["B"]> {loop.input = "qkv"},
    %start: tensor<?xi32, ["B"]> {loop.input = "start"},
    %q_norm: tensor<16xf32> {loop.weight = "model.layers.0.self_attn.q_norm.weight"},
    %k_norm: tensor<16xf32> {loop.weight = "model.layers.0.self_attn.k_norm.weight"},
    %k_cache: tensor<?x2x?x16xbf16, ["B", "C"]> {loop.state = "k_cache.0"},
    %v_cache: tensor<?x2x?x16xbf16, ["B", "C"]> {loop.state = "v_cache.0"},
    %gate_weight: tensor<4x16xf32> {loop.weight = "model.gate_projections.0.weight"},
    %gate_bias: tensor<4xf32> {loop.weight = "model.gate_projections.0.bias"}
  ) -> (tensor<?x2x2x1x16xbf16, ["B"]> {loop.name = "out"}) {
    %5 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 0 : i64, type = tensor<?x1x64xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x64xbf16, ["B"]>
    %12 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 64 : i64, type = tensor<?x1x32xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x32xbf16, ["B"]>
    %19 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 96 : i64, type = tensor<?x1x32xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x32xbf16, ["B"]>
    %6 = "loop.reshape"(%5) {type = tensor<?x1x4x16xbf16, ["B"]>} : (tensor<?x1x64xbf16, ["B"]>) -> tensor<?x1x4x16xbf16, ["B"]>
    %106 = "loop.transpose"(%6) {perm = [0, 2, 1, 3]} : (tensor<?x1x4x16xbf16, ["B"]>) -> tensor<?x4x1x16xbf16, ["B"]>
    %9 = "loop.rms_norm"(%106, %q_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<?x4x1x16xbf16, ["B"]>, tensor<16xf32>) -> tensor<?x4x1x16xbf16, ["B"]>
    %10 = "loop.rope"(%9, %start) {dtype = "bf16", max = 1200 : i64, theta = 1000000.0 : f64} : (tensor<?x4x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x4x1x16xbf16, ["B"]>
    %13 = "loop.reshape"(%12) {type = tensor<?x1x2x16xbf16, ["B"]>} : (tensor<?x1x32xbf16, ["B"]>) -> tensor<?x1x2x16xbf16, ["B"]>
    %107 = "loop.transpose"(%13) {perm = [0, 2, 1, 3]} : (tensor<?x1x2x16xbf16, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %16 = "loop.rms_norm"(%107, %k_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<?x2x1x16xbf16, ["B"]>, tensor<16xf32>) -> tensor<?x2x1x16xbf16, ["B"]>
    %17 = "loop.rope"(%16, %start) {dtype = "bf16", max = 1200 : i64, theta = 1000000.0 : f64} : (tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %20 = "loop.reshape"(%19) {type = tensor<?x1x2x16xbf16, ["B"]>} : (tensor<?x1x32xbf16, ["B"]>) -> tensor<?x1x2x16xbf16, ["B"]>
    %21 = "loop.transpose"(%20) {perm = [0, 2, 1, 3]} : (tensor<?x1x2x16xbf16, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %22 = "loop.reshape"(%10) {type = tensor<?x2x2x1x16xbf16, ["B"]>} : (tensor<?x4x1x16xbf16, ["B"]>) -> tensor<?x2x2x1x16xbf16, ["B"]>
    %24 = "loop.cache_write"(%k_cache, %17, %start) {ring = false} : (tensor<?x2x?x16xbf16, ["B", "C"]>, tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x?x16xbf16, ["B", "C"]>
    %25 = "loop.slice"(%24) {axis = 2 : i64, begin = 0 : i64, type = tensor<?x2x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "C"]>) -> tensor<?x2x?x16xbf16, ["B", "S"]>
    %27 = "loop.cache_write"(%v_cache, %21, %start) {ring = false} : (tensor<?x2x?x16xbf16, ["B", "C"]>, tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x?x16xbf16, ["B", "C"]>
    %28 = "loop.slice"(%27) {axis = 2 : i64, begin = 0 : i64, type = tensor<?x2x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "C"]>) -> tensor<?x2x?x16xbf16, ["B", "S"]>
    %33 = "loop.reshape"(%gate_weight) {type = tensor<2x2x1x16xf32>} : (tensor<4x16xf32>) -> tensor<2x2x1x16xf32>
    %34 = "loop.reshape"(%gate_bias) {type = tensor<2x2x1x1xf32>} : (tensor<4xf32>) -> tensor<2x2x1x1xf32>
    %35 = "loop.cast"(%22) {dtype = "f32"} : (tensor<?x2x2x1x16xbf16, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %36 = "loop.mul"(%35, %33) : (tensor<?x2x2x1x16xf32, ["B"]>, tensor<2x2x1x16xf32>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %37 = "loop.reduce_sum"(%36) {axis = 4 : i64} : (tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %38 = "loop.add"(%37, %34) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<2x2x1x1xf32>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %39 = "loop.sigmoid"(%38) : (tensor<?x2x2x1x1xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %40 = "loop.reshape"(%25) {type = tensor<?x2x1x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "S"]>) -> tensor<?x2x1x?x16xbf16, ["B", "S"]>
    %41 = "loop.reshape"(%28) {type = tensor<?x2x1x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "S"]>) -> tensor<?x2x1x?x16xbf16, ["B", "S"]>
    %58 = "loop.constant"() {type = tensor<f32>, value = 1.0 : f64} : () -> tensor<f32>
    %59 = "loop.sub"(%58, %39) : (tensor<f32>, tensor<?x2x2x1x1xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %82 = "loop.sweep"(%22, %40, %41, %start) {far = 5 : i64, near = 0 : i64, scale = 0.25 : f64, starts = true} : (tensor<?x2x2x1x16xbf16, ["B"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x2x1x18xf32, ["B"]>
    %83 = "loop.sweep"(%22, %40, %41, %start, %82) {continues = true, near = 5 : i64, scale = 0.25 : f64, starts = true} : (tensor<?x2x2x1x16xbf16, ["B"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?xi32, ["B"]>, tensor<?x2x2x1x18xf32, ["B"]>) -> tensor<?x2x2x1x18xf32, ["B"]>
    %84 = "loop.mean"(%83) : (tensor<?x2x2x1x18xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %85 = "loop.mul"(%39, %84) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %86 = "loop.mean"(%82) : (tensor<?x2x2x1x18xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %87 = "loop.mul"(%59, %86) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %88 = "loop.add"(%85, %87) : (tensor<?x2x2x1x16xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %89 = "loop.cast"(%88) {dtype = "bf16"} : (tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xbf16, ["B"]>
    return %89 : tensor<?x2x2x1x16xbf16, ["B"]>
  }

  func.func @two_caches(
    %qkv: tensor<?x1x128xbf16, ["B"]> {loop.input = "qkv"},
    %k: tensor<?x2x?x16xbf16, ["B", "S"]> {loop.input = "k"},
    %v: tensor<?x2x?x16xbf16, ["B", "S"]> {loop.input = "v"},
    %start: tensor<?xi32, ["B"]> {loop.input = "start"},
    %q_norm: tensor<16xf32> {loop.weight = "model.layers.0.self_attn.q_norm.weight"},
    %k_norm: tensor<16xf32> {loop.weight = "model.layers.0.self_attn.k_norm.weight"},
    %local_k_2: tensor<?x2x5x16xbf16, ["B"]> {loop.state = "local_k.2.0"},
    %local_v_2: tensor<?x2x5x16xbf16, ["B"]> {loop.state = "local_v.2.0"},
    %gate_weight: tensor<4x16xf32> {loop.weight = "model.gate_projections.0.weight"},
    %gate_bias: tensor<4xf32> {loop.weight = "model.gate_projections.0.bias"}
  ) -> (tensor<?x2x2x1x16xbf16, ["B"]> {loop.name = "out"}) {
    %8 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 0 : i64, type = tensor<?x1x64xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x64xbf16, ["B"]>
    %15 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 64 : i64, type = tensor<?x1x32xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x32xbf16, ["B"]>
    %22 = "loop.slice"(%qkv) {axis = 2 : i64, begin = 96 : i64, type = tensor<?x1x32xbf16, ["B"]>} : (tensor<?x1x128xbf16, ["B"]>) -> tensor<?x1x32xbf16, ["B"]>
    %9 = "loop.reshape"(%8) {type = tensor<?x1x4x16xbf16, ["B"]>} : (tensor<?x1x64xbf16, ["B"]>) -> tensor<?x1x4x16xbf16, ["B"]>
    %106 = "loop.transpose"(%9) {perm = [0, 2, 1, 3]} : (tensor<?x1x4x16xbf16, ["B"]>) -> tensor<?x4x1x16xbf16, ["B"]>
    %12 = "loop.rms_norm"(%106, %q_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<?x4x1x16xbf16, ["B"]>, tensor<16xf32>) -> tensor<?x4x1x16xbf16, ["B"]>
    %13 = "loop.rope"(%12, %start) {dtype = "bf16", max = 1200 : i64, theta = 1000000.0 : f64} : (tensor<?x4x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x4x1x16xbf16, ["B"]>
    %16 = "loop.reshape"(%15) {type = tensor<?x1x2x16xbf16, ["B"]>} : (tensor<?x1x32xbf16, ["B"]>) -> tensor<?x1x2x16xbf16, ["B"]>
    %107 = "loop.transpose"(%16) {perm = [0, 2, 1, 3]} : (tensor<?x1x2x16xbf16, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %19 = "loop.rms_norm"(%107, %k_norm) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<?x2x1x16xbf16, ["B"]>, tensor<16xf32>) -> tensor<?x2x1x16xbf16, ["B"]>
    %20 = "loop.rope"(%19, %start) {dtype = "bf16", max = 1200 : i64, theta = 1000000.0 : f64} : (tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %23 = "loop.reshape"(%22) {type = tensor<?x1x2x16xbf16, ["B"]>} : (tensor<?x1x32xbf16, ["B"]>) -> tensor<?x1x2x16xbf16, ["B"]>
    %24 = "loop.transpose"(%23) {perm = [0, 2, 1, 3]} : (tensor<?x1x2x16xbf16, ["B"]>) -> tensor<?x2x1x16xbf16, ["B"]>
    %25 = "loop.reshape"(%13) {type = tensor<?x2x2x1x16xbf16, ["B"]>} : (tensor<?x4x1x16xbf16, ["B"]>) -> tensor<?x2x2x1x16xbf16, ["B"]>
    %27 = "loop.cache_write"(%local_k_2, %20, %start) {ring = true} : (tensor<?x2x5x16xbf16, ["B"]>, tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x5x16xbf16, ["B"]>
    %29 = "loop.cache_write"(%local_v_2, %24, %start) {ring = true} : (tensor<?x2x5x16xbf16, ["B"]>, tensor<?x2x1x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x5x16xbf16, ["B"]>
    %33 = "loop.reshape"(%gate_weight) {type = tensor<2x2x1x16xf32>} : (tensor<4x16xf32>) -> tensor<2x2x1x16xf32>
    %34 = "loop.reshape"(%gate_bias) {type = tensor<2x2x1x1xf32>} : (tensor<4xf32>) -> tensor<2x2x1x1xf32>
    %35 = "loop.cast"(%25) {dtype = "f32"} : (tensor<?x2x2x1x16xbf16, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %36 = "loop.mul"(%35, %33) : (tensor<?x2x2x1x16xf32, ["B"]>, tensor<2x2x1x16xf32>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %37 = "loop.reduce_sum"(%36) {axis = 4 : i64} : (tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %38 = "loop.add"(%37, %34) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<2x2x1x1xf32>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %39 = "loop.sigmoid"(%38) : (tensor<?x2x2x1x1xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %40 = "loop.reshape"(%k) {type = tensor<?x2x1x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "S"]>) -> tensor<?x2x1x?x16xbf16, ["B", "S"]>
    %41 = "loop.reshape"(%v) {type = tensor<?x2x1x?x16xbf16, ["B", "S"]>} : (tensor<?x2x?x16xbf16, ["B", "S"]>) -> tensor<?x2x1x?x16xbf16, ["B", "S"]>
    %49 = "loop.reshape"(%27) {type = tensor<?x2x1x5x16xbf16, ["B"]>} : (tensor<?x2x5x16xbf16, ["B"]>) -> tensor<?x2x1x5x16xbf16, ["B"]>
    %50 = "loop.reshape"(%29) {type = tensor<?x2x1x5x16xbf16, ["B"]>} : (tensor<?x2x5x16xbf16, ["B"]>) -> tensor<?x2x1x5x16xbf16, ["B"]>
    %58 = "loop.constant"() {type = tensor<f32>, value = 1.0 : f64} : () -> tensor<f32>
    %59 = "loop.sub"(%58, %39) : (tensor<f32>, tensor<?x2x2x1x1xf32, ["B"]>) -> tensor<?x2x2x1x1xf32, ["B"]>
    %82 = "loop.sweep"(%25, %40, %41, %start) {near = 0 : i64, scale = 0.25 : f64, starts = true} : (tensor<?x2x2x1x16xbf16, ["B"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?x2x1x?x16xbf16, ["B", "S"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x2x1x18xf32, ["B"]>
    %83 = "loop.mean"(%82) : (tensor<?x2x2x1x18xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %84 = "loop.mul"(%39, %83) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %85 = "loop.sweep"(%25, %49, %50, %start) {near = 0 : i64, scale = 0.25 : f64, starts = true} : (tensor<?x2x2x1x16xbf16, ["B"]>, tensor<?x2x1x5x16xbf16, ["B"]>, tensor<?x2x1x5x16xbf16, ["B"]>, tensor<?xi32, ["B"]>) -> tensor<?x2x2x1x18xf32, ["B"]>
    %86 = "loop.mean"(%85) : (tensor<?x2x2x1x18xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %87 = "loop.mul"(%59, %86) : (tensor<?x2x2x1x1xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %88 = "loop.add"(%84, %87) : (tensor<?x2x2x1x16xf32, ["B"]>, tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xf32, ["B"]>
    %89 = "loop.cast"(%88) {dtype = "bf16"} : (tensor<?x2x2x1x16xf32, ["B"]>) -> tensor<?x2x2x1x16xbf16, ["B"]>
    return %89 : tensor<?x2x2x1x16xbf16, ["B"]>
  }
}
