// plan: main
module {
  func.func @main(
    %q: tensor<?x2x3x?x16xbf16, ["B", "T"]> {loop.input = "q"},
    %k: tensor<?x2x1x?x16xbf16, ["B", "T"]> {loop.input = "k"},
    %v: tensor<?x2x1x?x16xbf16, ["B", "T"]> {loop.input = "v"}
  ) -> (tensor<?x2x3x?x16xbf16, ["B", "T"]> {loop.name = "y"}) {
    %s = "loop.matmul"(%q, %k) {dtype = "f32", transpose_b = true} : (tensor<?x2x3x?x16xbf16, ["B", "T"]>, tensor<?x2x1x?x16xbf16, ["B", "T"]>) -> tensor<?x2x3x?x?xf32, ["B", "T", "T"]>
    %m = "loop.mask"() {type = tensor<?x?xi1, ["T", "T"]>, window = 8} : () -> tensor<?x?xi1, ["T", "T"]>
    %scale = "loop.constant"() {type = tensor<f32>, value = 0.25} : () -> tensor<f32>
    %low = "loop.constant"() {type = tensor<f32>, value = 0xFFF0000000000000 : f64} : () -> tensor<f32>
    %scaled = "loop.mul"(%s, %scale) : (tensor<?x2x3x?x?xf32, ["B", "T", "T"]>, tensor<f32>) -> tensor<?x2x3x?x?xf32, ["B", "T", "T"]>
    %masked = "loop.where"(%m, %scaled, %low) : (tensor<?x?xi1, ["T", "T"]>, tensor<?x2x3x?x?xf32, ["B", "T", "T"]>, tensor<f32>) -> tensor<?x2x3x?x?xf32, ["B", "T", "T"]>
    %p = "loop.softmax"(%masked) {dtype = "bf16"} : (tensor<?x2x3x?x?xf32, ["B", "T", "T"]>) -> tensor<?x2x3x?x?xbf16, ["B", "T", "T"]>
    %y = "loop.matmul"(%p, %v) {dtype = "bf16"} : (tensor<?x2x3x?x?xbf16, ["B", "T", "T"]>, tensor<?x2x1x?x16xbf16, ["B", "T"]>) -> tensor<?x2x3x?x16xbf16, ["B", "T"]>
    return %y : tensor<?x2x3x?x16xbf16, ["B", "T"]>
  }
}
