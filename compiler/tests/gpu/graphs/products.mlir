// Products: of rows that are f32 and odd (plain), of two computed sides (mma.sync, where S allows), and of bf16 weights, as they are
// and with what stands before and behind: a norm's scale, a rounded left side, two weights, a residual; logits with their loss.
module {
  func.func @plain(
    %x: tensor<?x?x37xf32, ["B", "T"]> {loop.input = "x"},
    %w: tensor<70x37xf32> {loop.weight = "w"}
  ) -> (tensor<?x?x70xf32, ["B", "T"]> {loop.name = "y"}) {
    %y = "loop.matmul"(%x, %w) {dtype = "f32", transpose_b = true} : (tensor<?x?x37xf32, ["B", "T"]>, tensor<70x37xf32>) -> tensor<?x?x70xf32, ["B", "T"]>
    return %y : tensor<?x?x70xf32, ["B", "T"]>
  }

  func.func @scores(
    %q: tensor<?x2x?x64xbf16, ["B", "T"]> {loop.input = "q"},
    %k: tensor<?x2x?x64xbf16, ["B", "S"]> {loop.input = "k"}
  ) -> (tensor<?x2x?x?xf32, ["B", "T", "S"]> {loop.name = "y"}) {
    %y = "loop.matmul"(%q, %k) {dtype = "f32", transpose_b = true} : (tensor<?x2x?x64xbf16, ["B", "T"]>, tensor<?x2x?x64xbf16, ["B", "S"]>) -> tensor<?x2x?x?xf32, ["B", "T", "S"]>
    return %y : tensor<?x2x?x?xf32, ["B", "T", "S"]>
  }

  func.func @values(
    %p: tensor<?x2x?x?xbf16, ["B", "T", "S"]> {loop.input = "p"},
    %v: tensor<?x2x?x64xbf16, ["B", "S"]> {loop.input = "v"}
  ) -> (tensor<?x2x?x64xbf16, ["B", "T"]> {loop.name = "y"}) {
    %y = "loop.matmul"(%p, %v) {dtype = "bf16"} : (tensor<?x2x?x?xbf16, ["B", "T", "S"]>, tensor<?x2x?x64xbf16, ["B", "S"]>) -> tensor<?x2x?x64xbf16, ["B", "T"]>
    return %y : tensor<?x2x?x64xbf16, ["B", "T"]>
  }

  func.func @weights(
    %x: tensor<?x?x64xbf16, ["B", "T"]> {loop.input = "x"},
    %w: tensor<264x64xbf16> {loop.weight = "w"}
  ) -> (tensor<?x?x264xbf16, ["B", "T"]> {loop.name = "y"}) {
    %y = "loop.matmul"(%x, %w) {dtype = "bf16", transpose_b = true} : (tensor<?x?x64xbf16, ["B", "T"]>, tensor<264x64xbf16>) -> tensor<?x?x264xbf16, ["B", "T"]>
    return %y : tensor<?x?x264xbf16, ["B", "T"]>
  }

  func.func @normed_pair(
    %x: tensor<?x?x72xf32, ["B", "T"]> {loop.input = "x"},
    %gate: tensor<136x72xbf16> {loop.weight = "gate"},
    %up: tensor<136x72xbf16> {loop.weight = "up"}
  ) -> (tensor<?x?x136xbf16, ["B", "T"]> {loop.name = "y"}) {
    %scale = "loop.rms_scale"(%x) {eps = 1.0e-6 : f64} : (tensor<?x?x72xf32, ["B", "T"]>) -> tensor<?x?x1xf32, ["B", "T"]>
    %r = "loop.cast"(%x) {dtype = "bf16"} : (tensor<?x?x72xf32, ["B", "T"]>) -> tensor<?x?x72xbf16, ["B", "T"]>
    %g = "loop.matmul"(%r, %gate) {dtype = "f32", transpose_b = true} : (tensor<?x?x72xbf16, ["B", "T"]>, tensor<136x72xbf16>) -> tensor<?x?x136xf32, ["B", "T"]>
    %u = "loop.matmul"(%r, %up) {dtype = "f32", transpose_b = true} : (tensor<?x?x72xbf16, ["B", "T"]>, tensor<136x72xbf16>) -> tensor<?x?x136xf32, ["B", "T"]>
    %gs = "loop.mul"(%g, %scale) : (tensor<?x?x136xf32, ["B", "T"]>, tensor<?x?x1xf32, ["B", "T"]>) -> tensor<?x?x136xf32, ["B", "T"]>
    %us = "loop.mul"(%u, %scale) : (tensor<?x?x136xf32, ["B", "T"]>, tensor<?x?x1xf32, ["B", "T"]>) -> tensor<?x?x136xf32, ["B", "T"]>
    %s = "loop.silu"(%gs) : (tensor<?x?x136xf32, ["B", "T"]>) -> tensor<?x?x136xf32, ["B", "T"]>
    %m = "loop.mul"(%s, %us) : (tensor<?x?x136xf32, ["B", "T"]>, tensor<?x?x136xf32, ["B", "T"]>) -> tensor<?x?x136xf32, ["B", "T"]>
    %y = "loop.cast"(%m) {dtype = "bf16"} : (tensor<?x?x136xf32, ["B", "T"]>) -> tensor<?x?x136xbf16, ["B", "T"]>
    return %y : tensor<?x?x136xbf16, ["B", "T"]>
  }

  func.func @residual(
    %x: tensor<?x?x96xf32, ["B", "T"]> {loop.input = "x"},
    %h: tensor<?x?x40xbf16, ["B", "T"]> {loop.input = "h"},
    %w: tensor<96x40xbf16> {loop.weight = "w"}
  ) -> (tensor<?x?x96xf32, ["B", "T"]> {loop.name = "y"}) {
    %p = "loop.matmul"(%h, %w) {dtype = "f32", transpose_b = true} : (tensor<?x?x40xbf16, ["B", "T"]>, tensor<96x40xbf16>) -> tensor<?x?x96xf32, ["B", "T"]>
    %y = "loop.add"(%x, %p) : (tensor<?x?x96xf32, ["B", "T"]>, tensor<?x?x96xf32, ["B", "T"]>) -> tensor<?x?x96xf32, ["B", "T"]>
    return %y : tensor<?x?x96xf32, ["B", "T"]>
  }

  // Rows of two tiles, which the first product hands to the second.
  func.func @handed(
    %x: tensor<?x?x160xf32, ["B", "T"]> {loop.input = "x"},
    %h: tensor<?x?x40xbf16, ["B", "T"]> {loop.input = "h"},
    %w: tensor<160x40xbf16> {loop.weight = "w"},
    %v: tensor<72x160xbf16> {loop.weight = "v"}
  ) -> (tensor<?x?x160xf32, ["B", "T"]> {loop.name = "y"}, tensor<?x?x72xbf16, ["B", "T"]> {loop.name = "z"}) {
    %p = "loop.matmul"(%h, %w) {dtype = "f32", transpose_b = true} : (tensor<?x?x40xbf16, ["B", "T"]>, tensor<160x40xbf16>) -> tensor<?x?x160xf32, ["B", "T"]>
    %y = "loop.add"(%x, %p) : (tensor<?x?x160xf32, ["B", "T"]>, tensor<?x?x160xf32, ["B", "T"]>) -> tensor<?x?x160xf32, ["B", "T"]>
    %scale = "loop.rms_scale"(%y) {eps = 1.0e-6 : f64} : (tensor<?x?x160xf32, ["B", "T"]>) -> tensor<?x?x1xf32, ["B", "T"]>
    %r = "loop.cast"(%y) {dtype = "bf16"} : (tensor<?x?x160xf32, ["B", "T"]>) -> tensor<?x?x160xbf16, ["B", "T"]>
    %q = "loop.matmul"(%r, %v) {dtype = "f32", transpose_b = true} : (tensor<?x?x160xbf16, ["B", "T"]>, tensor<72x160xbf16>) -> tensor<?x?x72xf32, ["B", "T"]>
    %s = "loop.mul"(%q, %scale) : (tensor<?x?x72xf32, ["B", "T"]>, tensor<?x?x1xf32, ["B", "T"]>) -> tensor<?x?x72xf32, ["B", "T"]>
    %z = "loop.cast"(%s) {dtype = "bf16"} : (tensor<?x?x72xf32, ["B", "T"]>) -> tensor<?x?x72xbf16, ["B", "T"]>
    return %y, %z : tensor<?x?x160xf32, ["B", "T"]>, tensor<?x?x72xbf16, ["B", "T"]>
  }

  func.func @loss(
    %x: tensor<?x?x64xf32, ["B", "T"]> {loop.input = "x"},
    %targets: tensor<?x?xi32, ["B", "T"]> {loop.input = "targets"},
    %w: tensor<131x64xbf16> {loop.weight = "w"}
  ) -> (tensor<?x?xf32, ["B", "T"]> {loop.name = "nll"}) {
    %r = "loop.cast"(%x) {dtype = "bf16"} : (tensor<?x?x64xf32, ["B", "T"]>) -> tensor<?x?x64xbf16, ["B", "T"]>
    %p = "loop.matmul"(%r, %w) {dtype = "f32", transpose_b = true} : (tensor<?x?x64xbf16, ["B", "T"]>, tensor<131x64xbf16>) -> tensor<?x?x131xf32, ["B", "T"]>
    %y = "loop.cross_entropy"(%p, %targets) : (tensor<?x?x131xf32, ["B", "T"]>, tensor<?x?xi32, ["B", "T"]>) -> tensor<?x?xf32, ["B", "T"]>
    return %y : tensor<?x?xf32, ["B", "T"]>
  }
}
