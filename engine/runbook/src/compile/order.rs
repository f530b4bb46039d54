//! The order of steps: Kahn's algorithm with an ordered ready set, so that the file decides among equals, and the path
//! of each cycle.
//!
//! Nothing here recurses: a chain may be as long as a file allows.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

/// `0..count` so that each comes after those it needs, the smallest first among equals. `edges` are (needed, by).
///
/// # Errors
/// The cycles, one for each knot, each a path whose last element needs the first.
pub(super) fn order(count: usize, edges: &[(u32, u32)]) -> Result<Vec<u32>, Vec<Vec<u32>>> {
    let mut missing = vec![0_u32; count];
    let mut dependents: Vec<Vec<u32>> = vec![Vec::new(); count];
    for (from, to) in edges {
        missing[*to as usize] += 1;
        dependents[*from as usize].push(*to);
    }
    let mut ready: BinaryHeap<Reverse<u32>> =
        (0..count as u32).filter(|node| missing[*node as usize] == 0).map(Reverse).collect();
    let mut ordered = Vec::with_capacity(count);
    while let Some(Reverse(node)) = ready.pop() {
        ordered.push(node);
        for dependent in &dependents[node as usize] {
            let left = &mut missing[*dependent as usize];
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse(*dependent));
            }
        }
    }
    if ordered.len() == count { Ok(ordered) } else { Err(cycles(count, &dependents)) }
}

fn cycles(count: usize, dependents: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut graph: DiGraph<(), (), u32> = DiGraph::with_capacity(count, 0);
    for _ in 0..count {
        graph.add_node(());
    }
    for (from, to) in
        dependents.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |to| (from, *to)))
    {
        graph.add_edge(NodeIndex::new(from), NodeIndex::from(to), ());
    }
    let mut found: Vec<Vec<u32>> = kosaraju_scc(&graph)
        .into_iter()
        .filter_map(|knot| {
            let mut knot: Vec<u32> = knot.into_iter().map(|node| node.index() as u32).collect();
            knot.sort_unstable();
            let first = *knot.first()?;
            (knot.len() > 1 || dependents[first as usize].contains(&first))
                .then(|| shortest(first, &knot, dependents))
        })
        .collect();
    found.sort();
    found
}

/// The shortest way from `start` back to itself within its knot, breadth first.
fn shortest(start: u32, knot: &[u32], dependents: &[Vec<u32>]) -> Vec<u32> {
    let mut came_from: HashMap<u32, u32> = HashMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(node) = waiting.pop_front() {
        for next in &dependents[node as usize] {
            if *next == start {
                let mut path = vec![node];
                while let Some(before) =
                    path.last().filter(|last| **last != start).and_then(|last| came_from.get(last))
                {
                    path.push(*before);
                }
                path.reverse();
                return path;
            }
            if knot.binary_search(next).is_ok() && !came_from.contains_key(next) {
                came_from.insert(*next, node);
                waiting.push_back(*next);
            }
        }
    }
    vec![start]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_decides_among_equals() {
        assert_eq!(order(4, &[(3, 0)]), Ok(vec![1, 2, 3, 0]));
        assert_eq!(order(3, &[]), Ok(vec![0, 1, 2]));
        assert_eq!(order(3, &[(0, 2), (0, 2), (2, 1)]), Ok(vec![0, 2, 1]), "an edge may be named twice");
    }

    #[test]
    fn each_knot_is_named_by_its_shortest_path() {
        assert_eq!(order(3, &[(0, 1), (1, 2), (2, 1)]), Err(vec![vec![1, 2]]));
        assert_eq!(order(1, &[(0, 0)]), Err(vec![vec![0]]));
        assert_eq!(
            order(5, &[(0, 1), (1, 2), (2, 3), (3, 0), (1, 0), (4, 4)]),
            Err(vec![vec![0, 1], vec![4]])
        );
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let count = 50_000_u32;
        let chain: Vec<(u32, u32)> = (1..count).map(|node| (node, node - 1)).collect();
        let ordered = order(count as usize, &chain).unwrap();
        assert_eq!((ordered[0], ordered[49_999]), (count - 1, 0));
        let ring: Vec<(u32, u32)> = (0..count).map(|node| (node, (node + 1) % count)).collect();
        assert_eq!(order(count as usize, &ring).unwrap_err()[0].len(), 50_000);
    }

    proptest! {
        #[test]
        fn every_need_comes_first_or_a_real_cycle_is_named(edges in prop::collection::vec((0_u32..12, 0_u32..12), 0..24)) {
            match order(12, &edges) {
                Ok(ordered) => {
                    let at = |node: u32| ordered.iter().position(|known| *known == node).unwrap();
                    prop_assert!(edges.iter().all(|(from, to)| at(*from) < at(*to)));
                }
                Err(cycles) => {
                    for cycle in cycles {
                        for (index, from) in cycle.iter().enumerate() {
                            let to = cycle[(index + 1) % cycle.len()];
                            prop_assert!(edges.contains(&(*from, to)));
                        }
                    }
                }
            }
        }
    }
}
