// errors
module {
  func.func @main(
    %x: tensor<?x40xf32, ["T"]> {loop.input = "x"},
    %w: tensor<40x8xbf16> {loop.weight = "w"}
  ) -> (tensor<?x40xf32, ["T"]> {loop.name = "y"}) {
    %a = "loop.matmul"(%x, %w) {dtype = "f32", transpose_b = true} : (tensor<?x40xf32, ["T"]>, tensor<40x8xbf16>) -> tensor<?x8xf32, ["T"]>
    %b = "loop.frobnicate"(%x) : (tensor<?x40xf32, ["T"]>) -> tensor<?x40xf32, ["T"]>
    %c = "loop.add"(%x, %b) : (tensor<?x40xf32, ["T"]>, tensor<?x40xf32, ["T"]>) -> tensor<?x40xbf16, ["T"]>
    %d = "loop.call"(%x) {callee = "nobody", layer = 0} : (tensor<?x40xf32, ["T"]>) -> tensor<?x40xf32, ["T"]>
    return %b : tensor<?x40xf32, ["T"]>
  }
}
