// mlir: main
module {
  func.func @main(
    %x: tensor<?x40xf32, ["T"]> {loop.input = "x"}
  ) -> (tensor<?x40xbf16, ["T"]> {loop.name = "y"}) {
    %y = "loop.softmax"(%x) {dtype = "bf16"} : (tensor<?x40xf32, ["T"]>) -> tensor<?x40xbf16, ["T"]>
    return %y : tensor<?x40xbf16, ["T"]>
  }
}
