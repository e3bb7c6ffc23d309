// mlir: main
module {
  func.func @main(
    %x: tensor<?x64xbf16, ["T"]> {loop.input = "x"},
    %w: tensor<128x64xbf16> {loop.weight = "w"}
  ) -> (tensor<?x128xbf16, ["T"]> {loop.name = "y"}) {
    %y = "loop.matmul"(%x, %w) {dtype = "bf16", transpose_b = true} : (tensor<?x64xbf16, ["T"]>, tensor<128x64xbf16>) -> tensor<?x128xbf16, ["T"]>
    return %y : tensor<?x128xbf16, ["T"]>
  }
}
