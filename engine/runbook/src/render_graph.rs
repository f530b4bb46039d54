//! A [`Graph`] for people: a text tree, DOT, Mermaid, and a picture in SVG that needs nothing else.
//!
//! All four show the same: each step with what it does, in topological order, and what it needs. Names are escaped for
//! the format they go into.

use std::fmt::Write as _;

use crate::graph::{Graph, Need, Step, StepIndex, Uses};

fn what(step: &Step) -> String {
    let (name, mut notes) = match &step.uses {
        Uses::Action { name, .. } => (name.to_string(), Vec::new()),
        Uses::Runbook { name } => (format!("runbook.{name}"), Vec::new()),
    };
    if step.for_each.is_some() {
        notes.push("for each");
    }
    if step.condition.is_some() {
        notes.push("if");
    }
    if step.commit_point {
        notes.push("commit point");
    }
    if step.finally {
        notes.push("finally");
    }
    if notes.is_empty() { name } else { format!("{name} ({})", notes.join(", ")) }
}

/// The needs of a step, in file order.
fn needs(graph: &Graph, index: StepIndex) -> Vec<(StepIndex, Need)> {
    let mut needs: Vec<(StepIndex, Need)> = graph.needs(index).collect();
    needs.sort_by_key(|(on, _)| *on);
    needs
}

/// One line for each step, in topological order, with what it needs.
pub fn to_text(graph: &Graph) -> String {
    let width = graph.indices().map(|index| graph.step(index).id.chars().count()).max().unwrap_or(0);
    let does = graph.indices().map(|index| what(graph.step(index)).chars().count()).max().unwrap_or(0);
    let mut text = format!("{}: {}\n", graph.name, graph.summary);
    for index in graph.order() {
        let step = graph.step(*index);
        let needs: Vec<String> = needs(graph, *index)
            .into_iter()
            .map(|(on, need)| match need {
                Need::Succeeded => graph.step(on).id.to_string(),
                Need::Finished => format!("{} (finished)", graph.step(on).id),
            })
            .collect();
        let needs = if needs.is_empty() { "at once".into() } else { format!("after {}", needs.join(", ")) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:<width$}  {:<does$}  {needs}", step.id, what(step));
    }
    text
}

/// Graphviz.
pub fn to_dot(graph: &Graph) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quote(&graph.name));
    for index in graph.indices() {
        let step = graph.step(index);
        // The line break is Graphviz's own escape, so it is added after quoting.
        let label = quote(&step.id).trim_end_matches('"').to_owned()
            + "\\n"
            + quote(&what(step)).trim_start_matches('"');
        let style = if step.finally { ", style=dashed" } else { "" };
        let _ = writeln!(text, "  {} [label={label}{style}];", quote(&step.id));
    }
    for index in graph.indices() {
        for (on, need) in needs(graph, index) {
            let style = if need == Need::Finished { " [style=dashed]" } else { "" };
            let _ =
                writeln!(text, "  {} -> {}{style};", quote(&graph.step(on).id), quote(&graph.step(index).id));
        }
    }
    text.push_str("}\n");
    text
}

/// Mermaid, as Markdown pages show it.
pub fn to_mermaid(graph: &Graph) -> String {
    let mut text = String::from("flowchart LR\n");
    for index in graph.indices() {
        let step = graph.step(index);
        let _ = writeln!(text, "  s{}[\"{}<br/>{}\"]", index.index(), escape(&step.id), escape(&what(step)));
    }
    for index in graph.indices() {
        for (on, need) in needs(graph, index) {
            let arrow = if need == Need::Finished { "-.->" } else { "-->" };
            let _ = writeln!(text, "  s{} {arrow} s{}", on.index(), index.index());
        }
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

const BOX: (usize, usize) = (190, 44);
const GAP: (usize, usize) = (70, 18);
const MARGIN: usize = 16;

/// A picture: each step stands right of all it needs, steps of one column in file order.
pub fn to_svg(graph: &Graph) -> String {
    let mut layer = vec![0_usize; graph.len()];
    for index in graph.order() {
        layer[index.index()] = graph.needs(*index).map(|(on, _)| layer[on.index()] + 1).max().unwrap_or(0);
    }
    let columns = layer.iter().max().map_or(0, |last| last + 1);
    let mut filled = vec![0_usize; columns];
    let mut places = vec![(0_usize, 0_usize); graph.len()];
    for index in graph.indices() {
        let column = layer[index.index()];
        places[index.index()] =
            (MARGIN + column * (BOX.0 + GAP.0), MARGIN + filled[column] * (BOX.1 + GAP.1));
        filled[column] += 1;
    }
    let rows = filled.iter().max().copied().unwrap_or(0);
    let width = 2 * MARGIN + (columns * (BOX.0 + GAP.0)).saturating_sub(GAP.0);
    let height = 2 * MARGIN + (rows * (BOX.1 + GAP.1)).saturating_sub(GAP.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n\
         <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#666\"/></marker></defs>\n",
        escape(&format!("Steps of {}", graph.name)),
        escape(&graph.name),
    );
    for index in graph.indices() {
        let (to_x, to_y) = places[index.index()];
        let to_y = to_y + BOX.1 / 2;
        for (on, need) in needs(graph, index) {
            let (x, y) = places[on.index()];
            let (from_x, from_y) = (x + BOX.0, y + BOX.1 / 2);
            let bend = GAP.0 / 2;
            let dash = if need == Need::Finished { " stroke-dasharray=\"4 3\"" } else { "" };
            let _ = writeln!(
                svg,
                "<path d=\"M{from_x} {from_y}C{} {from_y} {} {to_y} {to_x} {to_y}\" fill=\"none\" stroke=\"#666\"{dash} \
                 marker-end=\"url(#arrow)\"/>",
                from_x + bend,
                to_x.saturating_sub(bend),
            );
        }
    }
    for index in graph.indices() {
        let step = graph.step(index);
        let (x, y) = places[index.index()];
        let dash = if step.finally { " stroke-dasharray=\"4 3\"" } else { "" };
        let _ = writeln!(
            svg,
            "<g data-step=\"{id}\"><title>{id}: {full}</title><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"5\" \
             fill=\"#fff\" stroke=\"#333\"{dash}/><text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>\
             <text x=\"{}\" y=\"{}\" fill=\"#555\">{}</text></g>",
            BOX.0,
            BOX.1,
            x + 10,
            y + 18,
            escape(&cut(&step.id)),
            x + 10,
            y + 34,
            escape(&cut(&what(step))),
            id = escape(&step.id),
            full = escape(&what(step)),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// What fits into a box.
fn cut(text: &str) -> String {
    const LONGEST: usize = 26;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 1).chain(std::iter::once('…')).collect()
}
