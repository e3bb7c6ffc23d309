// passes: cse, dce
module {
  func.func @main(
    %s: tensor<?x4x?x?xf32, ["B", "T", "T"]> {loop.input = "s"}
  ) -> (tensor<?x4x?x?xf32, ["B", "T", "T"]> {loop.name = "y"}) {
    %m1 = "loop.mask"() {type = tensor<?x?xi1, ["T", "T"]>} : () -> tensor<?x?xi1, ["T", "T"]>
    %m2 = "loop.mask"() {type = tensor<?x?xi1, ["T", "T"]>} : () -> tensor<?x?xi1, ["T", "T"]>
    %m3 = "loop.mask"() {type = tensor<?x?xi1, ["T", "T"]>, window = 8} : () -> tensor<?x?xi1, ["T", "T"]>
    %low = "loop.constant"() {type = tensor<f32>, value = -1.0} : () -> tensor<f32>
    %a = "loop.where"(%m1, %s, %low) : (tensor<?x?xi1, ["T", "T"]>, tensor<?x4x?x?xf32, ["B", "T", "T"]>, tensor<f32>) -> tensor<?x4x?x?xf32, ["B", "T", "T"]>
    %b = "loop.where"(%m2, %s, %low) : (tensor<?x?xi1, ["T", "T"]>, tensor<?x4x?x?xf32, ["B", "T", "T"]>, tensor<f32>) -> tensor<?x4x?x?xf32, ["B", "T", "T"]>
    %unused = "loop.where"(%m3, %s, %low) : (tensor<?x?xi1, ["T", "T"]>, tensor<?x4x?x?xf32, ["B", "T", "T"]>, tensor<f32>) -> tensor<?x4x?x?xf32, ["B", "T", "T"]>
    %y = "loop.add"(%a, %b) : (tensor<?x4x?x?xf32, ["B", "T", "T"]>, tensor<?x4x?x?xf32, ["B", "T", "T"]>) -> tensor<?x4x?x?xf32, ["B", "T", "T"]>
    return %y : tensor<?x4x?x?xf32, ["B", "T", "T"]>
  }
}
