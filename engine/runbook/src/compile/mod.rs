//! Runbooks → graphs, with every mistake of every file found in one go.
//!
//! Read [`compile`] (all files of a project) and [`compile_bundle`] (the pinned texts of one run). Each file passes
//! through the same stages, none of which stops at a mistake: `yaml` reads the text, the schema of
//! [`authored::Runbook`] checks its shape, `head` checks what stands at the top, `steps` checks each step and its
//! expressions, `order` sorts them. `names` knows what a name means, `types` what a value is, `with` checks the input
//! of an action by its schema.
//!
//! **Rules:** no text makes this panic or recurse deeper than the parser's limit; work grows with the size of the text;
//! what is reported is certain (unknown types fit everything).

pub(crate) mod alerts;
mod head;
mod names;
mod order;
mod scan;
mod steps;
mod types;
mod with;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use farrier_model::spec::{Catalog, Risk};
use farrier_model::{Digest, Text};

use crate::authored;
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, Source, Span, quoted};
use crate::graph::{Bundle, Graph, InputSpec};
use crate::read::read;
use crate::yaml::{Node, parse};

pub(crate) use head::duration;

/// What became of a set of runbooks.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The graphs of the runbooks without errors, by name.
    pub graphs: BTreeMap<Text, Arc<Graph>>,
    /// The texts of all runbooks, by name.
    pub sources: BTreeMap<Text, Text>,
    /// Everything that is wrong.
    pub diagnostics: Diagnostics,
}

impl Compiled {
    /// A runbook with every runbook it can start; nothing when it does not exist or has errors.
    pub fn bundle(&self, root: &str) -> Option<Bundle> {
        let mut graphs: BTreeMap<Text, Arc<Graph>> = BTreeMap::new();
        let mut sources: BTreeMap<Text, Text> = BTreeMap::new();
        let mut waiting = vec![Text::from(root)];
        while let Some(name) = waiting.pop() {
            if graphs.contains_key(&name) {
                continue;
            }
            let graph = self.graphs.get(&name)?;
            waiting.extend(graph.children().cloned());
            sources.insert(name.clone(), self.sources.get(&name)?.clone());
            graphs.insert(name, graph.clone());
        }
        let digest = Digest::of_parts(sources.iter().flat_map(|(name, text)| [&**name, &**text]));
        Some(Bundle { root: root.into(), graphs, sources, digest })
    }
}

/// What other runbooks may know of one.
pub(crate) struct Interface {
    /// What it must be told; nothing when its file cannot be read.
    inputs: Option<Vec<InputSpec>>,
    /// The names of its outputs; nothing when its file cannot be read.
    outputs: Option<Vec<Text>>,
    /// The most it may do.
    risk: Option<Risk>,
}

/// What all files of one compilation share.
pub(crate) struct Project<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) interfaces: &'a BTreeMap<Text, Interface>,
    /// There are more runbooks than these, which were compared with them once: see [`compile_bundle`].
    pub(crate) pinned: bool,
}

struct File {
    name: Text,
    id: FileId,
    text: Text,
    node: Option<Node>,
    authored: Option<authored::Runbook>,
}

/// Files for one more thread; fewer are not worth starting it.
const FILES_PER_THREAD: usize = 16;

/// Does `each` for every item, on all cores when there are many; results and mistakes are in the items' order.
fn for_all<T: Sync, R: Send>(
    items: &[T],
    out: &mut Diagnostics,
    each: impl Fn(&T, &mut Diagnostics) -> R + Sync,
) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(items.len() / FILES_PER_THREAD);
    if threads < 2 {
        return items.iter().map(|item| each(item, out)).collect();
    }
    let base = &*out;
    let parts: Vec<(Vec<R>, Diagnostics)> = std::thread::scope(|scope| {
        let each = &each;
        let workers: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|chunk| {
                scope.spawn(move || {
                    let mut found = base.of_same_files();
                    let results: Vec<R> = chunk.iter().map(|item| each(item, &mut found)).collect();
                    (results, found)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut results = Vec::with_capacity(items.len());
    for (part, found) in parts {
        results.extend(part);
        out.extend(found);
    }
    results
}

/// One runbook names another as a child.
pub(crate) struct ChildUse {
    pub(crate) name: Text,
    pub(crate) span: Span,
}

/// Compiles all runbooks of a project.
pub fn compile(sources: &[Source], catalog: &Catalog) -> Compiled {
    compile_files(sources, catalog, false)
}

fn compile_files(sources: &[Source], catalog: &Catalog, pinned: bool) -> Compiled {
    let mut out = Diagnostics::new();
    let mut files: BTreeMap<Text, File> = BTreeMap::new();
    for source in sources {
        let id = out.add_source(source.clone());
        let name: Text = stem(&source.path).into();
        if let Some(first) = files.get(&name) {
            let other = out.source(first.id).map_or(String::new(), |source| source.path.clone());
            out.push(
                Diagnostic::new(
                    codes::SAME_RUNBOOK,
                    Span::new(id, 0..0),
                    format!("there is already a runbook {} in {}", quoted(&name), quoted(&other)),
                )
                .help("names of runbooks are unique in a project; rename one file"),
            );
            continue;
        }
        files.insert(name.clone(), File { name, id, text: source.text.clone(), node: None, authored: None });
    }
    let unread: Vec<(FileId, Text)> = files.values().map(|file| (file.id, file.text.clone())).collect();
    let read_files = for_all(&unread, &mut out, |(id, text), out| {
        let node = parse(*id, text.as_bytes(), out);
        let authored = node.as_ref().and_then(|node| read::<authored::Runbook>(node, out));
        (node, authored)
    });
    for (file, (node, authored)) in files.values_mut().zip(read_files) {
        file.node = node;
        file.authored = authored;
    }
    let list: Vec<&File> = files.values().collect();

    let mut heads: BTreeMap<Text, head::Head> = BTreeMap::new();
    let mut interfaces: BTreeMap<Text, Interface> = BTreeMap::new();
    let checked = for_all(&list, &mut out, |file, out| match (&file.node, &file.authored) {
        (Some(node), Some(authored)) => Some(head::check(&file.name, node, authored, catalog, out)),
        _ => None,
    });
    for (file, head) in list.iter().zip(checked) {
        let interface = Interface {
            inputs: head.as_ref().filter(|head| head.inputs_good).map(|head| head.inputs.clone()),
            outputs: file.authored.as_ref().map(|authored| {
                authored
                    .outputs
                    .iter()
                    .flat_map(|outputs| outputs.iter())
                    .map(|(name, _)| (*name.value).into())
                    .collect()
            }),
            risk: file.authored.as_ref().map(|authored| authored.risk.value.into()),
        };
        interfaces.insert(file.name.clone(), interface);
        heads.extend(head.map(|head| (file.name.clone(), head)));
    }

    let project = Project { catalog, interfaces: &interfaces, pinned };
    let mut graphs: BTreeMap<Text, Arc<Graph>> = BTreeMap::new();
    let mut children: BTreeMap<Text, Vec<ChildUse>> = BTreeMap::new();
    let mut good: BTreeSet<Text> = BTreeSet::new();
    let heads: Vec<(Text, Mutex<Option<head::Head>>)> =
        heads.into_iter().map(|(name, head)| (name, Mutex::new(Some(head)))).collect();
    let built = for_all(&heads, &mut out, |(name, head), out| {
        let file = files.get(name)?;
        let (Some(node), Some(authored)) = (&file.node, &file.authored) else { return None };
        // Each head is taken once, by whichever thread has its file.
        let head = head.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(steps::check(head, Digest::of(&*file.text), node, authored, &project, out))
    });
    for ((name, _), built) in heads.into_iter().zip(built) {
        let (Some(file), Some((graph, uses))) = (files.get(&name), built) else { continue };
        children.insert(name.clone(), uses);
        if let Some(graph) = graph.filter(|_| !out.has_errors_in(file.id)) {
            graphs.insert(name.clone(), Arc::new(graph));
            good.insert(name);
        }
    }

    report_recursion(&children, &mut out);
    // A runbook is as good as those it starts.
    let mut changed = true;
    while changed {
        changed = false;
        for (name, uses) in children.iter().filter(|(name, _)| good.contains(*name)).collect::<Vec<_>>() {
            let bad: Vec<&ChildUse> = uses
                .iter()
                .filter(|child| files.contains_key(&child.name) && !good.contains(&child.name))
                .collect();
            let recursive = files.get(name).is_some_and(|file| out.has_errors_in(file.id));
            // Of a circle it has been said already what is wrong.
            for child in bad.iter().filter(|_| !recursive) {
                out.push(
                    Diagnostic::new(
                        codes::CHILD_HAS_ERRORS,
                        child.span,
                        format!("runbook {} has errors of its own", quoted(&child.name)),
                    )
                    .help("mend that file first"),
                );
            }
            if !bad.is_empty() || recursive {
                good.remove(name);
                graphs.remove(name);
                changed = true;
            }
        }
    }
    let sources = files.into_values().map(|file| (file.name, file.text)).collect();
    Compiled { graphs, sources, diagnostics: out }
}

/// Compiles the texts that a run is pinned to. A rate may count runs of a runbook that is not among them: it is not started.
///
/// # Errors
/// Everything that is wrong, also when `root` is not among the texts.
pub fn compile_bundle(
    root: &str,
    texts: &BTreeMap<Text, Text>,
    catalog: &Catalog,
) -> Result<Bundle, Diagnostics> {
    let sources: Vec<Source> = texts
        .iter()
        .map(|(name, text)| Source { path: format!("{name}.yaml"), text: text.clone() })
        .collect();
    let mut compiled = compile_files(&sources, catalog, true);
    match compiled.bundle(root) {
        Some(bundle) if !compiled.diagnostics.has_errors() => Ok(bundle),
        _ => {
            if !compiled.diagnostics.has_errors() {
                let id =
                    compiled.diagnostics.add_source(Source { path: format!("{root}.yaml"), text: "".into() });
                compiled.diagnostics.push(Diagnostic::new(
                    codes::UNKNOWN_RUNBOOK,
                    Span::new(id, 0..0),
                    format!("there is no runbook {}", quoted(root)),
                ));
            }
            Err(compiled.diagnostics)
        }
    }
}

/// The file's name without its folder and `.yaml`.
fn stem(path: &str) -> &str {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml")).unwrap_or(name)
}

/// A runbook that starts itself, by whatever way, would never end.
fn report_recursion(children: &BTreeMap<Text, Vec<ChildUse>>, out: &mut Diagnostics) {
    let names: Vec<&Text> = children.keys().collect();
    let position = |name: &Text| names.binary_search(&name).ok().map(|at| at as u32);
    let edges: Vec<(u32, u32)> = children
        .iter()
        .flat_map(|(parent, uses)| {
            uses.iter().filter_map(|child| Some((position(parent)?, position(&child.name)?)))
        })
        .collect();
    let Err(cycles) = order::order(names.len(), &edges) else { return };
    for cycle in cycles {
        let path: Vec<&str> = cycle.iter().chain(cycle.first()).map(|at| &**names[*at as usize]).collect();
        for (at, index) in cycle.iter().enumerate() {
            let next = names[cycle[(at + 1) % cycle.len()] as usize];
            let uses = children.get(names[*index as usize]).into_iter().flatten();
            for child in uses.filter(|child| child.name == *next) {
                out.push(
                    Diagnostic::new(
                        codes::RECURSION,
                        child.span,
                        format!("these runbooks start each other without end: {}", path.join(" → ")),
                    )
                    .help("break the circle; to repeat something, use `for_each` or a trigger"),
                );
            }
        }
    }
}
