//! A graph of jobs as a drawing: inputs on the left, what needs them to the right.

use kiln_wire::DrvPath;
use maud::{Markup, html};

use crate::paint::{self, JobState};
use crate::words;

/// A part of a build's graph that fits a screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Its jobs.
    pub nodes: Vec<Node>,
    /// Jobs of the build that are not drawn.
    pub left_out: u64,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which.
    pub derivation: DrvPath,
    /// Its state.
    pub state: JobState,
    /// It is on the critical path.
    pub is_critical: bool,
    /// Those of the drawing that it needs, by their place in it. What is beyond the drawing, or part of a circle, is left out.
    pub inputs: Vec<usize>,
}

/// Where a node is drawn.
struct Place {
    column: usize,
    row: usize,
}

impl Graph {
    pub(crate) fn draw(&self) -> Markup {
        let places = self.places();
        let columns = places.iter().map(|place| place.column + 1).max().unwrap_or(1);
        let rows = places.iter().map(|place| place.row + 1).max().unwrap_or(1);
        let (width, height) = (columns * COLUMN + 8, rows * ROW + 8);
        let says = format!("Graph of {}", words::counted(u64::try_from(self.nodes.len()).unwrap_or(u64::MAX), "job", "jobs"));
        html! {
            div class="drawbox" id="graph-box" tabindex="0" role="group" aria-label=(says) {
                svg class="natural" viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="group" aria-label=(says) {
                    @for (at, node) in self.nodes.iter().enumerate() {
                        @for input in self.inputs(at) {
                            @let is_critical = node.is_critical && self.nodes[input].is_critical;
                            path class={ "edge" @if is_critical { " crit" } } d=(edge(&places[input], &places[at])) {}
                        }
                    }
                    @for (node, place) in self.nodes.iter().zip(&places) { (draw_node(node, place)) }
                }
            }
            @if self.left_out > 0 {
                p class="small soft" { (words::counted(self.left_out, "job is", "jobs are")) " not drawn; the list has them all" }
            }
        }
    }

    fn inputs(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        self.nodes[at].inputs.iter().copied().filter(move |input| *input < self.nodes.len() && *input != at)
    }

    /// Puts every node one column right of its last input, and in a row near those of its inputs.
    fn places(&self) -> Vec<Place> {
        let mut columns = vec![0usize; self.nodes.len()];
        // As often as there are nodes at most: a circle, which no farm has, ends the search too.
        for _ in 0..self.nodes.len() {
            let mut moved = false;
            for at in 0..self.nodes.len() {
                let wanted = self.inputs(at).map(|input| columns[input] + 1).max().unwrap_or(0).min(self.nodes.len());
                moved |= wanted > columns[at];
                columns[at] = columns[at].max(wanted);
            }
            if !moved {
                break;
            }
        }
        let mut rows = vec![0usize; self.nodes.len()];
        for column in 0..=columns.iter().copied().max().unwrap_or(0) {
            let mut members: Vec<usize> = (0..self.nodes.len()).filter(|at| columns[*at] == column).collect();
            let near = |at: &usize| {
                let (sum, count) = self.inputs(*at).fold((0, 0), |(sum, count), input| (sum + rows[input] * 16, count + 1));
                (!self.nodes[*at].is_critical, sum / count.max(1), *at)
            };
            members.sort_by_cached_key(near);
            for (row, member) in members.into_iter().enumerate() {
                rows[member] = row;
            }
        }
        columns.into_iter().zip(rows).map(|(column, row)| Place { column, row }).collect()
    }
}

fn draw_node(node: &Node, place: &Place) -> Markup {
    let (x, y) = (place.column * COLUMN + 4, place.row * ROW + 4);
    let name = paint::short(&node.derivation);
    let says = format!("{name}: {}{}", node.state.word(), if node.is_critical { ", on the critical path" } else { "" });
    html! {
        a href=(paint::job_href(&node.derivation)) aria-label=(says) {
            title { (says) }
            g class={ "node " (node.state.tone().class()) @if node.is_critical { " crit" } } {
                rect class="hit" x=(x) y=(y) width=(NODE) height=(ROW - 8) rx="4" {}
                svg class="i" x=(x + 6) y=(y + 5) width="12" height="12" viewBox="0 0 16 16" { use href={ "#i-" (node.state.mark()) } {} }
                text x=(x + 23) y=(y + 15) { (paint::cut(name, NAME_CHARS)) }
            }
        }
    }
}

fn edge(from: &Place, to: &Place) -> String {
    let (x1, y1) = (from.column * COLUMN + 4 + NODE, from.row * ROW + ROW / 2);
    let (x2, y2) = (to.column * COLUMN + 4, to.row * ROW + ROW / 2);
    let middle = (x1 + x2) / 2;
    format!("M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}")
}

const COLUMN: usize = 200;
const NODE: usize = 160;
const ROW: usize = 30;
const NAME_CHARS: usize = 20;
