//! A graph as a picture in a file: DOT text, or SVG laid out here, so that nobody needs Graphviz.

use std::path::Path;

use anyhow::{Context, bail};
use layout::backends::svg::SVGWriter;
use layout::gv::{DotParser, GraphBuilder};

/// `out.dot` or `out.svg`: the ending says which. All of the file or nothing is written.
pub fn write(module: &ir::Module, out: &Path) -> anyhow::Result<()> {
    let text = if svg_wanted(out)? {
        svg(module)?
    } else {
        ir::draw::dot(module, None)
    };
    Ok(runtime::weights::write_whole(out, &[text.as_bytes()])?)
}

/// Another ending is refused: better before the work than after it.
pub fn svg_wanted(out: &Path) -> anyhow::Result<bool> {
    match out.extension().and_then(|e| e.to_str()) {
        Some("dot") => Ok(false),
        Some("svg") => Ok(true),
        _ => bail!("{}: a drawing ends in .dot or .svg", out.display()),
    }
}

/// The functions below each other, each under its name: the layout library knows no clusters.
fn svg(module: &ir::Module) -> anyhow::Result<String> {
    const TITLE: f64 = 40.0;
    let (mut body, mut width, mut height) = (String::new(), 0.0f64, 0.0);
    for f in &module.functions {
        let text = ir::draw::dot(module, Some(&f.name));
        let tree = DotParser::new(&text)
            .process()
            .map_err(|e| anyhow::anyhow!("@{}: the drawing cannot be read back: {e}", f.name))?;
        let mut builder = GraphBuilder::new();
        builder.visit_graph(&tree);
        let mut graph = builder.get();
        // Parameters stand first in a drawing; the library does not read that they are rounded.
        let params: Vec<_> = graph.iter_nodes().take(f.params.len()).collect();
        params.into_iter().for_each(|p| graph.element_mut(p).look.rounded = 12);
        let mut canvas = SVGWriter::new();
        if graph.num_nodes() > 0 {
            graph.do_it(false, false, false, &mut canvas);
        }
        let drawn = canvas.finalize();
        let inner = drawn.find("<svg").map_or("", |at| &drawn[at..]);
        let number = |at: usize| inner.split('"').nth(at).and_then(|n| n.parse::<f64>().ok());
        let (w, h) = (number(1).zip(number(3))).context("the layout has no size")?;
        let name = f.name.replace('&', "&amp;").replace('<', "&lt;");
        let at = height + TITLE;
        body += &format!("<text x=\"10\" y=\"{}\" font-size=\"20\">@{name}</text>\n", at - 12.0);
        body += &inner.replacen("<svg", &format!("<svg y=\"{at}\""), 1);
        body.push('\n');
        (width, height) = (width.max(w), at + h);
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    ))
}

#[cfg(test)]
mod tests {
    /// The library's layout panics on no random graph, and all of a graph is in the picture.
    #[test]
    fn random_graphs_are_drawn() {
        for seed in 0..40 {
            let module = ir::testing::random(seed).module;
            let text = super::svg(&module).unwrap();
            let nodes = ir::draw::dot(&module, None).matches(" [label=").count();
            assert!(text.matches("<rect").count() > nodes / 2, "seed {seed}");
            for f in &module.functions {
                assert!(text.contains(&format!(">@{}<", f.name)));
            }
        }
    }
}
