// Element-wise kernels that run as one, and reductions along and across the columns; widths that are a vector's multiple and not.
module {
  func.func @joined(
    %x: tensor<?x?x37xf32, ["B", "T"]> {loop.input = "x"},
    %y: tensor<?x?x64xf32, ["B", "T"]> {loop.input = "y"}
  ) -> (
    tensor<?x?x37xf32, ["B", "T"]> {loop.name = "a"},
    tensor<?x?x64xbf16, ["B", "T"]> {loop.name = "b"},
    tensor<?x?x64xbf16, ["B", "T"]> {loop.name = "c"}
  ) {
    %s = "loop.silu"(%x) : (tensor<?x?x37xf32, ["B", "T"]>) -> tensor<?x?x37xf32, ["B", "T"]>
    %a = "loop.mul"(%s, %x) : (tensor<?x?x37xf32, ["B", "T"]>, tensor<?x?x37xf32, ["B", "T"]>) -> tensor<?x?x37xf32, ["B", "T"]>
    %b = "loop.cast"(%y) {dtype = "bf16"} : (tensor<?x?x64xf32, ["B", "T"]>) -> tensor<?x?x64xbf16, ["B", "T"]>
    %c = "loop.softmax"(%y) {dtype = "bf16"} : (tensor<?x?x64xf32, ["B", "T"]>) -> tensor<?x?x64xbf16, ["B", "T"]>
    return %a, %b, %c : tensor<?x?x37xf32, ["B", "T"]>, tensor<?x?x64xbf16, ["B", "T"]>, tensor<?x?x64xbf16, ["B", "T"]>
  }

  func.func @map(
    %x: tensor<?x?x1100xf32, ["B", "T"]> {loop.input = "x"},
    %w: tensor<1100xf32> {loop.weight = "w"}
  ) -> (tensor<?x?x1100xbf16, ["B", "T"]> {loop.name = "y"}) {
    %m = "loop.mul"(%x, %w) : (tensor<?x?x1100xf32, ["B", "T"]>, tensor<1100xf32>) -> tensor<?x?x1100xf32, ["B", "T"]>
    %s = "loop.sigmoid"(%m) : (tensor<?x?x1100xf32, ["B", "T"]>) -> tensor<?x?x1100xf32, ["B", "T"]>
    %y = "loop.cast"(%s) {dtype = "bf16"} : (tensor<?x?x1100xf32, ["B", "T"]>) -> tensor<?x?x1100xbf16, ["B", "T"]>
    return %y : tensor<?x?x1100xbf16, ["B", "T"]>
  }

  func.func @norm(
    %x: tensor<?x?x1024xf32, ["B", "T"]> {loop.input = "x"},
    %w: tensor<1024xf32> {loop.weight = "w"}
  ) -> (tensor<?x?x1024xbf16, ["B", "T"]> {loop.name = "y"}) {
    %y = "loop.rms_norm"(%x, %w) {dtype = "bf16", eps = 1.0e-6 : f64} : (tensor<?x?x1024xf32, ["B", "T"]>, tensor<1024xf32>) -> tensor<?x?x1024xbf16, ["B", "T"]>
    return %y : tensor<?x?x1024xbf16, ["B", "T"]>
  }

  func.func @columns(
    %x: tensor<?x?x40xf32, ["B", "T"]> {loop.input = "x"}
  ) -> (tensor<?x1x40xf32, ["B"]> {loop.name = "y"}) {
    %y = "loop.reduce_sum"(%x) {axis = 1 : i64} : (tensor<?x?x40xf32, ["B", "T"]>) -> tensor<?x1x40xf32, ["B"]>
    return %y : tensor<?x1x40xf32, ["B"]>
  }

  func.func @rows_of_tokens(
    %x: tensor<?x?x?xf32, ["B", "T", "S"]> {loop.input = "x"}
  ) -> (tensor<?x?x?xf32, ["B", "T", "S"]> {loop.name = "y"}) {
    %y = "loop.softmax"(%x) {dtype = "f32"} : (tensor<?x?x?xf32, ["B", "T", "S"]>) -> tensor<?x?x?xf32, ["B", "T", "S"]>
    return %y : tensor<?x?x?xf32, ["B", "T", "S"]>
  }

  func.func @rows_again(
    %x: tensor<?x?x40xf32, ["B", "T"]> {loop.input = "x"},
    %tokens: tensor<?x?xi32, ["B", "T"]> {loop.input = "tokens"}
  ) -> (tensor<64x40xf32> {loop.name = "y"}) {
    %y = "loop.scatter_rows"(%x, %tokens) {type = tensor<64x40xf32>} : (tensor<?x?x40xf32, ["B", "T"]>, tensor<?x?xi32, ["B", "T"]>) -> tensor<64x40xf32>
    return %y : tensor<64x40xf32>
  }
}
