//! Checks the steps and builds the [`Graph`].
//!
//! First every step's output type becomes known, then each step's expressions are checked against them; what they read
//! becomes edges; then the order is found, and the rules that need the whole graph are checked.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use farrier_model::expr::Template;
use farrier_model::spec::{ActionSpec, Risk};
use farrier_model::time::parse_duration;
use farrier_model::{Digest, Effect, Text, Type, Value};
use petgraph::graph::DiGraph;
use serde_json::Value as Json;

use super::head::{self, Head};
use super::names::{Found, IN_STEP, StepUse, View, hint};
use super::{ChildUse, Interface, Project, order, types, with};
use crate::at::At;
use crate::authored::{self, OnFailure as AuthoredOnFailure, OnParked as AuthoredOnParked};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, quoted};
use crate::graph::{
    Expectation, ForEach, Graph, Guard, Need, OnFailure, OnItemFailure, RateOf, Retry, Signal, Step,
    StepIndex, Undo, Uses, Verify,
};
use crate::read::{NoHooks, check_schema, constant};
use crate::said::{Gives, OUTPUTS};
use crate::yaml::Node;

/// What a step does, as far as it is known.
enum Does<'a> {
    Action(&'a ActionSpec),
    Runbook(&'a Interface),
    /// Reported; nothing about it is checked.
    Unknown,
}

impl Does<'_> {
    /// The worst that the step can do.
    fn risk(&self, step: &authored::Step) -> Option<Risk> {
        match self {
            Does::Action(spec) if says_read_only(spec, step) => Some(Risk::ReadOnly),
            Does::Action(spec) => Some(spec.risk),
            Does::Runbook(interface) => interface.risk,
            Does::Unknown => None,
        }
    }

    fn writes(&self, step: &authored::Step) -> bool {
        match self {
            Does::Action(spec) => spec.effect != Effect::Read && !says_read_only(spec, step),
            Does::Runbook(interface) => interface.risk.is_some_and(|risk| risk > Risk::ReadOnly),
            Does::Unknown => false,
        }
    }
}

/// Whether the step says, as a constant, that it changes nothing.
fn says_read_only(spec: &ActionSpec, step: &authored::Step) -> bool {
    let field = spec.read_only_if.and_then(|field| step.with.as_ref()?.get(field));
    field.is_some_and(|value| value.to_value() == Value::Bool(true))
}

/// One step before it is checked.
struct Draft<'a> {
    id: &'a At<String>,
    step: &'a authored::Step,
    does: Does<'a>,
    finally: bool,
}

/// Checks the steps; the graph, unless something about them is wrong, and the child runbooks they name.
pub(super) fn check(
    mut head: Head,
    digest: Digest,
    node: &Node,
    authored: &authored::Runbook,
    project: &Project<'_>,
    out: &mut Diagnostics,
) -> (Option<Graph>, Vec<ChildUse>) {
    let mut children = Vec::new();
    let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(authored.steps.len() + authored.finally.len());
    let main = authored.steps.iter().map(|entry| (entry, false));
    for ((id, step), finally) in main.chain(authored.finally.iter().map(|entry| (entry, true))) {
        head::check_id(id, "a step", out);
        if finally && head.names.steps.contains_key(&*id.value) {
            out.push(
                Diagnostic::new(codes::SAME_STEP, id.span, format!("there is already a step {}", quoted(id)))
                    .help("ids are unique over `steps` and `finally`"),
            );
        }
        head.names.steps.entry((*id.value).into()).or_insert(drafts.len() as u32);
        let does = does(&step.uses, project, &mut children, out);
        drafts.push(Draft { id, step, does, finally });
    }
    if authored.steps.is_empty() {
        let place = node.entry("steps").map_or(node.span, |(key, _)| key.span);
        out.push(
            Diagnostic::new(codes::NO_STEPS, place, "the runbook has no steps").expected("at least one step"),
        );
    }
    head.names.outputs = drafts.iter().map(output_type).collect();
    head.names.runbooks =
        [head.name.clone()].into_iter().chain(children.iter().map(|child| child.name.clone())).collect();

    let risk: Risk = authored.risk.value.into();
    let mut found = std::mem::take(&mut head.found);
    let mut steps: Vec<Option<Step>> = Vec::with_capacity(drafts.len());
    let mut reads: Vec<BTreeMap<u32, Vec<StepUse>>> = Vec::with_capacity(drafts.len());
    let mut needs: Vec<BTreeMap<u32, Need>> = Vec::with_capacity(drafts.len());
    for (at, draft) in drafts.iter().enumerate() {
        let mut used = Found::default();
        let mut checker =
            Checker { head: &head, drafts: &drafts, project, at: at as u32, used: &mut used, out };
        steps.push(checker.step(draft));
        needs.push(checker.needs(draft));
        checker.rules(draft, risk, authored.risk.span);
        reads.push(std::mem::take(&mut used.steps));
        found.inputs.append(&mut used.inputs);
        found.vars.append(&mut used.vars);
        found.targets.append(&mut used.targets);
    }

    let outputs = {
        let view = View { names: &head.names, roots: IN_STEP, result: None, locals: Vec::new(), step: None };
        let mut entries = Vec::new();
        for (name, node) in authored.outputs.iter().flat_map(|outputs| outputs.iter()) {
            head::check_id(name, "an output", out);
            if let Some((template, _)) = view.tree(node, true, &mut found, out) {
                entries.push((Text::from(&*name.value), template));
            }
        }
        authored.outputs.is_some().then_some(Template::Map(entries))
    };
    let output_reads = std::mem::take(&mut found.steps);
    let signals = check_signals(authored, &head, &mut found, out);
    // Nobody relies on what these read: an output that is not there names nobody.
    found.steps.clear();

    let guards = {
        let place = node.entry("guards").map_or(node.span, |(key, _)| key.span);
        head::check_guards(
            &authored.guards,
            place,
            &mut |name, out| check_rate(name, &head, project, out),
            out,
        )
    };

    let edges = edges(&drafts, &reads, needs, out);
    let pairs: Vec<(u32, u32)> = edges
        .iter()
        .enumerate()
        .flat_map(|(to, from)| from.keys().map(move |from| (*from, to as u32)))
        .collect();
    let order = match order::order(drafts.len(), &pairs) {
        Ok(order) => Some(order),
        Err(cycles) => {
            for cycle in cycles {
                report_cycle(&cycle, &drafts, &reads, out);
            }
            None
        }
    };
    if let Some(order) = &order {
        check_absent(&drafts, order, &edges, &reads, &output_reads, out);
        check_commit_points(&drafts, order, &edges, authored, out);
    }
    // An expression that could not be read may use what seems unused.
    if !out.has_errors_in(authored.runbook.span.file) {
        lint_unused(&head, authored, &found, out);
    }

    let graph = order.and_then(|order| {
        let mut graph: DiGraph<Step, Need, u32> = DiGraph::with_capacity(drafts.len(), pairs.len());
        let mut relied_on = relied_on(&drafts, &reads, &output_reads);
        for (at, (step, reads)) in steps.into_iter().zip(&reads).enumerate() {
            let mut step = step?;
            step.reads = reads.keys().map(|read| StepIndex::from(*read)).collect();
            step.gives.read = std::mem::take(&mut relied_on[at]);
            graph.add_node(step);
        }
        for (to, needs) in edges.iter().enumerate() {
            for (from, need) in needs {
                graph.add_edge(StepIndex::from(*from), StepIndex::new(to), *need);
            }
        }
        Some(Graph {
            name: head.name.clone(),
            summary: (*authored.summary.value).into(),
            owner: (*authored.owner.value).into(),
            docs: authored.docs.as_ref().map(|docs| (*docs.value).into()),
            digest,
            risk,
            run_title: head.run_title,
            targets: head.targets,
            inputs: head.inputs,
            vars: head.vars,
            guards,
            triggers: head.triggers,
            escalate: head.escalate,
            health: head.health,
            timeout: head.timeout,
            outputs,
            one_run_per: head.one_run_per,
            locks: head.locks,
            signals,
            steps: graph,
            order: order.into_iter().map(StepIndex::from).collect(),
            main_steps: authored.steps.len(),
        })
    });
    (graph, children)
}

/// For each step the fields of its output that are read as if they were always there, with their readers.
fn relied_on(
    drafts: &[Draft<'_>],
    reads: &[BTreeMap<u32, Vec<StepUse>>],
    output_reads: &BTreeMap<u32, Vec<StepUse>>,
) -> Vec<Vec<(Text, Text)>> {
    let mut fields: Vec<Vec<(Text, Text)>> = vec![Vec::new(); drafts.len()];
    let readers = drafts.iter().map(|draft| draft.id.as_str()).zip(reads).chain([(OUTPUTS, output_reads)]);
    for (reader, uses) in readers {
        for (read, used) in uses.iter().flat_map(|(read, uses)| uses.iter().map(move |used| (*read, used))) {
            let Some(field) = used.field.as_deref().filter(|_| !used.guarded) else { continue };
            let entry = (Text::from(field), Text::from(reader));
            let known = &mut fields[read as usize];
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
    }
    fields
}

/// Finds what `uses` names.
fn does<'a>(
    uses: &At<String>,
    project: &Project<'a>,
    children: &mut Vec<ChildUse>,
    out: &mut Diagnostics,
) -> Does<'a> {
    if let Some(name) = uses.strip_prefix("runbook.") {
        if let Some(interface) = project.interfaces.get(name) {
            children.push(ChildUse { name: name.into(), span: uses.span });
            return Does::Runbook(interface);
        }
        let known = project.interfaces.keys().map(|name| &**name);
        let diagnostic = Diagnostic::new(
            codes::UNKNOWN_RUNBOOK,
            uses.span,
            format!("there is no runbook {}", quoted(name)),
        );
        out.push(match hint(name, known, "runbooks") {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        });
        return Does::Unknown;
    }
    if let Some(spec) = project.catalog.actions.get(uses.as_str()) {
        return Does::Action(spec);
    }
    report_unknown_action(uses, project, out);
    Does::Unknown
}

fn report_unknown_action(uses: &At<String>, project: &Project<'_>, out: &mut Diagnostics) {
    let diagnostic =
        Diagnostic::new(codes::UNKNOWN_ACTION, uses.span, format!("there is no action {}", quoted(uses)));
    let known = || project.catalog.actions.keys().copied();
    let of_plugin =
        |plugin: &str| known().filter(|name| name.split('.').next() == Some(plugin)).collect::<Vec<_>>();
    let verbs = uses.split_once('.').map(|(plugin, _)| of_plugin(plugin)).unwrap_or_default();
    let help = match crate::diagnostic::nearest(uses, known()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if project.interfaces.contains_key(uses.as_str()) => {
            Some(format!("a runbook is named `runbook.{uses}`"))
        }
        None if !verbs.is_empty() => hint("", verbs, "actions of this plugin"),
        None => Some("`farrier actions` lists them".into()),
    };
    out.push(help.map_or(diagnostic.clone(), |help| diagnostic.help(help)));
}

/// The type of what later steps can read of a step.
fn output_type(draft: &Draft<'_>) -> Type {
    let one = result_type(draft);
    if draft.step.for_each.is_none() {
        return one;
    }
    let row = vec![("key".into(), Type::Text), ("state".into(), Type::Text), ("output".into(), one)];
    Type::Record(vec![("items".into(), Type::List(Box::new(Type::Record(row))))])
}

/// The type of `result`: the output of one node.
fn result_type(draft: &Draft<'_>) -> Type {
    match &draft.does {
        Does::Action(spec) => {
            types::of_schema(&spec.output, &spec.output, draft.step.with.as_ref(), &spec.input, 0)
        }
        Does::Runbook(Interface { outputs: Some(names), .. }) => {
            Type::Record(names.iter().map(|name| (name.clone(), Type::Any)).collect())
        }
        Does::Runbook(_) | Does::Unknown => Type::Any,
    }
}

struct Checker<'a, 'o> {
    head: &'a Head,
    drafts: &'a [Draft<'a>],
    project: &'a Project<'a>,
    at: u32,
    used: &'o mut Found,
    out: &'o mut Diagnostics,
}

impl<'a> Checker<'a, '_> {
    fn view(&self) -> View<'a> {
        View {
            names: &self.head.names,
            roots: IN_STEP,
            result: None,
            locals: Vec::new(),
            step: Some(self.at),
        }
    }

    /// Checks everything that a step says of itself.
    fn step(&mut self, draft: &Draft<'a>) -> Option<Step> {
        let step = draft.step;
        let outer = self.view();
        let condition =
            step.condition.as_ref().map(|condition| outer.condition(&condition.0, self.used, self.out));
        let mut inner = outer.clone();
        let for_each = step.for_each.as_ref().map(|for_each| self.for_each(for_each, &mut inner));
        let with = self.with(&draft.does, step.uses.span, step.with.as_ref(), &inner);
        let result = result_type(draft);
        let of_result = View { result: Some(&result), ..inner };
        let expect: Vec<Option<Expectation>> = step
            .expect
            .iter()
            .map(|expect| {
                let that = of_result.condition(&expect.that.0, self.used, self.out);
                let otherwise = self.text(expect.otherwise.as_ref(), &of_result);
                Some(Expectation { that: that?, otherwise: otherwise?, then_finish: expect.then.is_some() })
            })
            .collect();
        let verify = step.verify.as_ref().map(|verify| self.verify(verify, &of_result));
        let undo = self.undo(draft, &of_result);
        let lock = step
            .lock
            .as_ref()
            .map(|lock| head::check_lock(lock, &of_result_free(&of_result), self.used, self.out));
        let guards = self.guards(&step.guards, draft.id.span);
        let retry = self.retry(draft);
        let timeout = step.timeout.as_ref().map(|timeout| head::positive(timeout, self.out));
        let default_output =
            step.default_output.as_ref().map(|node| self.default_output(draft, node, &result));
        let uses = match &draft.does {
            Does::Action(spec) => {
                Uses::Action { name: spec.name.into(), effect: spec.effect, pure: spec.pure }
            }
            Does::Runbook(_) => Uses::Runbook { name: step.uses.strip_prefix("runbook.")?.into() },
            Does::Unknown => return None,
        };
        Some(Step {
            id: (*draft.id.value).into(),
            finally: draft.finally,
            uses,
            with: with?,
            reads: Vec::new(),
            condition: flat(condition)?,
            for_each: flat(for_each)?,
            retry: retry?,
            timeout: flat(timeout)?,
            on_failure: match step.on_failure.map(|on_failure| on_failure.value) {
                None | Some(AuthoredOnFailure::Stop) => OnFailure::Stop,
                Some(AuthoredOnFailure::Continue) => OnFailure::Continue,
                Some(AuthoredOnFailure::Undo) => OnFailure::Undo,
            },
            leaves_parked: step.on_parked.is_some_and(|on| on.value == AuthoredOnParked::Fail),
            undo: undo?,
            gives: match &draft.does {
                Does::Action(spec) => Gives { schema: Some(spec.output.clone()), ..Gives::default() },
                Does::Runbook(interface) => Gives { names: interface.outputs.clone(), ..Gives::default() },
                Does::Unknown => Gives::default(),
            },
            expect: expect.into_iter().collect::<Option<_>>()?,
            verify: flat(verify)?,
            guards,
            lock: flat(lock)?,
            default_output: flat(default_output)?,
            commit_point: step.commit_point.is_some_and(|flag| flag.value),
            requires_clean: step.requires_clean.is_some_and(|flag| flag.value),
        })
    }

    /// Text for people; nothing at all is fine.
    #[expect(
        clippy::option_option,
        reason = "the outer says whether it is right, the inner whether it is there"
    )]
    fn text(&mut self, text: Option<&authored::MixedText>, view: &View<'_>) -> Option<Option<Template>> {
        match text {
            Some(text) => view.mixed(&text.0, self.used, self.out).map(Some),
            None => Some(None),
        }
    }

    /// Checks the input of an action or a child run.
    fn with(
        &mut self,
        does: &Does<'_>,
        uses: Span,
        node: Option<&Node>,
        view: &View<'_>,
    ) -> Option<Template> {
        match does {
            Does::Action(spec) => {
                with::action_input(node, uses, &spec.input, view, &self.head.targets, self.used, self.out)
            }
            Does::Runbook(Interface { inputs: Some(inputs), .. }) => {
                with::child_input(node, uses, inputs, view, self.used, self.out)
            }
            Does::Runbook(_) | Does::Unknown => {
                // The shape is not known; names in it still are.
                if let Some(node) = node {
                    let unknown_names = View { locals: vec![("item".into(), Type::Any)], ..view.clone() };
                    let mut ignored = Diagnostics::new();
                    unknown_names.tree(node, true, self.used, &mut ignored);
                    mark_targets(node, self.head, self.used);
                }
                None
            }
        }
    }

    fn for_each(&mut self, for_each: &authored::ForEach, inner: &mut View<'a>) -> Option<ForEach> {
        let outer = inner.clone();
        let items = outer.tree(&for_each.items, false, self.used, self.out);
        let as_name: Text = for_each.as_name.as_ref().map_or("item", |name| &*name.value).into();
        if let Some(name) = &for_each.as_name {
            head::check_id(name, "an item", self.out);
            if IN_STEP.contains(&name.as_str()) || name.value == "result" {
                self.out.push(
                    Diagnostic::new(
                        codes::BAD_ID,
                        name.span,
                        format!("`{name}` already has a meaning in expressions"),
                    )
                    .expected("another name for the item"),
                );
            }
        }
        let item = match &items {
            Some((_, Type::List(item))) => (**item).clone(),
            Some((_, Type::Any)) | None => Type::Any,
            Some((_, other)) => {
                self.out.push(
                    Diagnostic::new(
                        codes::TYPE_MISMATCH,
                        for_each.items.span,
                        format!("`for_each` goes over a list, and this is {}", types::describe(other)),
                    )
                    .expected("a list"),
                );
                Type::Any
            }
        };
        inner.locals.push((as_name.clone(), item));
        let key = inner.bare(&for_each.key.0, self.used, self.out);
        if let Some((_, kind @ (Type::List(_) | Type::Record(_) | Type::Dict(_)))) = &key {
            let fields = match kind {
                Type::Record(fields) => fields.first().map(|(name, _)| name.clone()),
                _ => None,
            };
            let diagnostic = Diagnostic::new(
                codes::TYPE_MISMATCH,
                for_each.key.0.span,
                format!("{} cannot be a key", types::describe(kind)),
            )
            .expected("text or a number");
            self.out.push(match fields {
                Some(field) => diagnostic
                    .help(format!("name one field, such as `{}.{field}`", for_each.key.text().trim())),
                None => diagnostic,
            });
        }
        if let Some(parallel) = for_each.parallel.filter(|parallel| parallel.value == 0) {
            self.out.push(
                Diagnostic::new(codes::BAD_FOR_EACH, parallel.span, "nothing runs with `parallel: 0`")
                    .expected("at least 1"),
            );
        }
        Some(ForEach {
            items: items?.0,
            as_name,
            key: key?.0,
            parallel: for_each.parallel.map(|parallel| parallel.value as usize),
            on_item_failure: match for_each.on_item_failure.map(|on| on.value) {
                Some(authored::OnItemFailure::Isolate) => OnItemFailure::Isolate,
                None | Some(authored::OnItemFailure::Stop) => OnItemFailure::Stop,
            },
        })
    }

    fn verify(&mut self, verify: &authored::Verify, view: &View<'_>) -> Option<Verify> {
        let that = view.condition(&verify.that.0, self.used, self.out);
        let otherwise = self.text(verify.otherwise.as_ref(), view);
        let within = head::positive(&verify.within, self.out);
        let every = match &verify.every {
            Some(every) => head::positive(every, self.out),
            None => Some(Duration::from_secs(10)),
        };
        let hold = match &verify.hold {
            Some(hold) => head::duration(hold, self.out),
            None => Some(Duration::ZERO),
        };
        if let (Some(hold), Some(within), Some(written)) = (hold, within, &verify.hold)
            && hold > within
        {
            self.out.push(
                Diagnostic::new(codes::BAD_VERIFY, written.0.span, "it can never hold that long")
                    .label(verify.within.0.span, "by then it must have held")
                    .expected("at most `within`"),
            );
        }
        Some(Verify { that: that?, within: within?, every: every?, hold: hold?, otherwise: otherwise? })
    }

    fn undo(&mut self, draft: &Draft<'a>, of_result: &View<'_>) -> Option<Undo> {
        match &draft.step.undo {
            None | Some(authored::Undo::None(_)) => Some(Undo::None),
            Some(authored::Undo::Restore(span)) => {
                let why = match &draft.does {
                    Does::Action(spec) if spec.restores => return Some(Undo::Restore),
                    Does::Action(spec) if spec.effect == Effect::Read => {
                        format!("`{}` changes nothing", spec.name)
                    }
                    Does::Action(spec) => format!("`{}` cannot restore what was before", spec.name),
                    Does::Runbook(_) => "a child run is not restored as a whole".into(),
                    Does::Unknown => return None,
                };
                self.out.push(Diagnostic::new(codes::CANNOT_RESTORE, *span, why).help(
                    "write `undo: none`, or name the action that reverses it: `undo: { uses: …, with: … }`",
                ));
                None
            }
            Some(authored::Undo::Action(undo)) => {
                let Some(spec) = self.project.catalog.actions.get(undo.uses.as_str()) else {
                    report_unknown_action(&undo.uses, self.project, self.out);
                    return None;
                };
                if spec.effect == Effect::Once {
                    self.out.push(
                        Diagnostic::new(
                            codes::UNDO_ONCE,
                            undo.uses.span,
                            format!(
                                "after a crash nobody could tell whether `{}` was done, so it cannot undo",
                                spec.name
                            ),
                        )
                        .help("use an action that can be repeated or probed"),
                    );
                }
                let with = with::action_input(
                    undo.with.as_ref(),
                    undo.uses.span,
                    &spec.input,
                    of_result,
                    &self.head.targets,
                    self.used,
                    self.out,
                );
                Some(Undo::Action { name: spec.name.into(), effect: spec.effect, with: with? })
            }
        }
    }

    fn guards(&mut self, guards: &[authored::Guard], place: Span) -> Vec<Guard> {
        let (head, project) = (self.head, self.project);
        head::check_guards(guards, place, &mut |name, out| check_rate(name, head, project, out), self.out)
    }

    fn retry(&mut self, draft: &Draft<'_>) -> Option<Retry> {
        let Some(retry) = &draft.step.retry else { return Some(Retry::default()) };
        if retry.attempts.value == 0 {
            self.out.push(
                Diagnostic::new(codes::BAD_RETRY, retry.attempts.span, "nothing runs with `attempts: 0`")
                    .expected("at least 1"),
            );
        }
        if retry.attempts.value > 1
            && let Does::Action(spec) = &draft.does
            && spec.effect == Effect::Once
        {
            self.out.push(
                Diagnostic::new(
                    codes::RETRY_ONCE,
                    retry.attempts.span,
                    format!(
                        "`{}` cannot be repeated: nobody can tell whether a failed attempt was done",
                        spec.name
                    ),
                )
                .help("remove `retry`, or use an action that can be repeated or probed"),
            );
        }
        let defaults = Retry::default();
        let pauses = match &retry.backoff {
            None => Some((defaults.first, defaults.longest)),
            Some(written) => {
                let (first, longest) = match written.split_once("..") {
                    Some((first, longest)) => (parse_duration(first.trim()), parse_duration(longest.trim())),
                    None => (parse_duration(written), parse_duration(written)),
                };
                let pauses = first.zip(longest).filter(|(first, longest)| first <= longest);
                if pauses.is_none() {
                    let message = match (first, longest) {
                        (Some(_), Some(_)) => "the first pause is longer than the longest".into(),
                        _ => format!("{} is not a backoff", quoted(written)),
                    };
                    self.out.push(
                        Diagnostic::new(codes::BAD_RETRY, written.span, message)
                            .expected("a shortest and a longest pause, such as `5s..15m`"),
                    );
                }
                pauses
            }
        };
        let (first, longest) = pauses?;
        Some(Retry {
            attempts: retry.attempts.value,
            first,
            longest,
            on: retry.on.iter().flatten().map(|kind| kind.value.into()).collect(),
        })
    }

    /// A constant that has only fields of the output, each of its type.
    fn default_output(&mut self, draft: &Draft<'_>, node: &Node, result: &Type) -> Option<Value> {
        if draft.step.for_each.is_some() {
            self.out.push(
                Diagnostic::new(
                    codes::BAD_DEFAULT_OUTPUT,
                    node.span,
                    "a step with `for_each` has no default output",
                )
                .help("its `items` say for each item how it ended"),
            );
            return None;
        }
        if let Type::Record(fields) = result {
            for (key, _) in node.as_map().into_iter().flatten() {
                if !fields.iter().any(|(name, _)| *name == key.text) {
                    let diagnostic = Diagnostic::new(
                        codes::BAD_DEFAULT_OUTPUT,
                        key.span,
                        format!("the output has no field {}", quoted(&key.text)),
                    );
                    let help = hint(&key.text, fields.iter().map(|(name, _)| &**name), "fields");
                    self.out.push(help.map_or(diagnostic.clone(), |help| diagnostic.help(help)));
                    return None;
                }
            }
        }
        match &draft.does {
            Does::Action(spec) => {
                let mut schema = (*spec.output).clone();
                // It may stand in for some fields only; what is read of it is checked with the readers.
                if let Some(schema) = schema.as_object_mut() {
                    schema.insert("required".into(), Json::Array(Vec::new()));
                }
                let before = self.out.len();
                let value = check_schema(node, &schema, &mut NoHooks, self.out).and_then(constant);
                head::recode(before, |_| codes::BAD_DEFAULT_OUTPUT, self.out);
                value
            }
            Does::Runbook(_) => Some(node.to_value()),
            Does::Unknown => None,
        }
    }

    /// The needs that a step names.
    fn needs(&mut self, draft: &Draft<'_>) -> BTreeMap<u32, Need> {
        let mut needs = BTreeMap::new();
        for need in draft.step.needs.iter().flatten() {
            let Some(index) = self.head.names.steps.get(&*need.step.value).copied() else {
                report_unknown_step(&need.step, self.head, self.out);
                continue;
            };
            if !draft.finally && self.drafts[index as usize].finally {
                self.out.push(
                    Diagnostic::new(
                        codes::NEEDS_FINALLY,
                        need.step.span,
                        format!(
                            "`{}` is a step of `finally`, which begins when the others are over",
                            need.step
                        ),
                    )
                    .help("move it to `steps`, or remove the need"),
                );
                continue;
            }
            needs.insert(index, if need.finished { Need::Finished } else { Need::Succeeded });
        }
        needs
    }

    /// The rules of safety that one step alone must keep.
    fn rules(&mut self, draft: &Draft<'_>, ceiling: Risk, ceiling_span: Span) {
        let step = draft.step;
        let mut risks: Vec<(Risk, &At<String>)> =
            draft.does.risk(step).map(|risk| (risk, &step.uses)).into_iter().collect();
        if let Some(authored::Undo::Action(undo)) = &step.undo
            && let Some(spec) = self.project.catalog.actions.get(undo.uses.as_str())
        {
            risks.push((spec.risk, &undo.uses));
        }
        for (risk, uses) in risks.into_iter().filter(|(risk, _)| *risk > ceiling) {
            self.out.push(
                Diagnostic::new(
                    codes::RISK_ABOVE_CEILING,
                    uses.span,
                    format!("`{uses}` is {}, which is more than this runbook may do", risk_name(risk)),
                )
                .label(ceiling_span, "the ceiling")
                .help(format!("write `risk: {}` if that is meant", risk_name(risk))),
            );
        }
        if ceiling > Risk::ReadOnly && draft.does.writes(step) && step.undo.is_none() && !draft.finally {
            let restores = matches!(draft.does, Does::Action(spec) if spec.restores);
            self.out.push(
                Diagnostic::new(
                    codes::UNDO_MISSING,
                    draft.id.span,
                    format!("step {} writes, and does not say how that is undone", quoted(draft.id)),
                )
                .help(if restores {
                    "write `undo: restore`, or `undo: none` if that is your decision"
                } else {
                    "write `undo: none` if that is your decision, or `undo: { uses: …, with: … }`"
                }),
            );
        }
        if matches!(draft.does, Does::Action(spec) if spec.deletes) && step.needs.is_none() {
            self.out.push(
                Diagnostic::new(
                    codes::DELETES_WITHOUT_NEEDS,
                    draft.id.span,
                    format!("step {} deletes, and does not say what must come first", quoted(draft.id)),
                )
                .help("position in the file means nothing: write `needs: [ … ]`, or `needs: []` if nothing must"),
            );
        }
        self.parked_child(draft);
        if draft.finally {
            let marked = |flag: Option<At<bool>>| flag.filter(|flag| flag.value).map(|flag| flag.span);
            let undo = step.on_failure.filter(|on| on.value == AuthoredOnFailure::Undo).map(|on| on.span);
            for (key, span) in [
                ("commit_point", marked(step.commit_point)),
                ("requires_clean", marked(step.requires_clean)),
                ("on_failure: undo", undo),
            ] {
                if let Some(span) = span {
                    self.out.push(
                        Diagnostic::new(
                            codes::NOT_IN_FINALLY,
                            span,
                            format!("`{key}` has no meaning in `finally`"),
                        )
                        .help("the run is decided when `finally` begins; remove it"),
                    );
                }
            }
        }
    }

    /// Only a child run can be parked and its step not. When it goes on, the step has long failed, and nothing of the step's holds
    /// for it.
    fn parked_child(&mut self, draft: &Draft<'_>) {
        let step = draft.step;
        let Some(on) = step.on_parked else { return };
        if let Does::Action(spec) = &draft.does {
            self.out.push(
                Diagnostic::new(
                    codes::BAD_ON_PARKED,
                    on.span,
                    format!("`{}` is an action, and only a run that a step starts can be parked", spec.name),
                )
                .help("remove `on_parked`; what a failure does to the run, `on_failure` says"),
            );
            return;
        }
        if on.value == AuthoredOnParked::Wait {
            return;
        }
        let undone = matches!(step.undo, Some(authored::Undo::Action(_))).then_some("undo");
        for key in undone.into_iter().chain(step.lock.as_ref().map(|_| "lock")) {
            self.out.push(
                Diagnostic::new(
                    codes::BAD_ON_PARKED,
                    on.span,
                    format!("a run that is left when it is parked goes on later, and `{key}` of this step does not hold for it"),
                )
                .help(format!("remove one of the two; `{key}` may stand in the runbook that is started")),
            );
        }
    }
}

/// What a step's lock may be called after: it is taken before there is a result.
fn of_result_free<'n>(view: &View<'n>) -> View<'n> {
    View { result: None, ..view.clone() }
}

/// Inner absence becomes outer presence: nothing was written is fine, something wrong is not.
#[expect(
    clippy::option_option,
    reason = "the outer says whether it is written, the inner whether it is right"
)]
fn flat<T>(checked: Option<Option<T>>) -> Option<Option<T>> {
    match checked {
        None => Some(None),
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
    }
}

/// `target: alias` under an action that does not exist still uses the alias.
fn mark_targets(node: &Node, head: &Head, used: &mut Found) {
    if let Some(text) = node.as_text().filter(|text| head.targets.contains_key(&***text)) {
        used.targets.insert(text.to_string());
    }
    for item in node.as_list().into_iter().flatten() {
        mark_targets(item, head, used);
    }
    for (_, value) in node.as_map().into_iter().flatten() {
        mark_targets(value, head, used);
    }
}

fn risk_name(risk: Risk) -> &'static str {
    match risk {
        Risk::ReadOnly => "read_only",
        Risk::Recoverable => "recoverable",
        Risk::Destructive => "destructive",
    }
}

fn report_unknown_step(name: &At<String>, head: &Head, out: &mut Diagnostics) {
    let diagnostic =
        Diagnostic::new(codes::UNKNOWN_STEP, name.span, format!("unknown step {}", quoted(name)));
    let help = hint(name, head.names.steps.keys().map(|name| &**name), "steps");
    out.push(help.map_or(diagnostic.clone(), |help| diagnostic.help(help)));
}

/// What a rate counts: a step of this runbook before a runbook of the same name.
fn check_rate(
    name: &At<String>,
    head: &Head,
    project: &Project<'_>,
    out: &mut Diagnostics,
) -> Option<RateOf> {
    if head.names.steps.contains_key(&*name.value) {
        return Some(RateOf::Step((*name.value).into()));
    }
    if project.pinned || project.interfaces.contains_key(name.as_str()) {
        return Some(RateOf::Runbook((*name.value).into()));
    }
    let known = head.names.steps.keys().chain(project.interfaces.keys()).map(|name| &**name);
    let diagnostic = Diagnostic::new(
        codes::UNKNOWN_STEP,
        name.span,
        format!("{} is neither a step nor a runbook", quoted(name)),
    );
    let help = hint(name, known, "steps and runbooks");
    out.push(help.map_or(diagnostic.clone(), |help| diagnostic.help(help)));
    None
}

/// The signals of a runbook: names are unique, and each stands for a step that it waits for, or for an end of the run.
fn check_signals(
    authored: &authored::Runbook,
    head: &Head,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Vec<Signal> {
    let view = View { names: &head.names, roots: IN_STEP, result: None, locals: Vec::new(), step: None };
    let names = Type::List(Box::new(Type::Text));
    let mut signals: Vec<Signal> = Vec::new();
    for signal in &authored.signals {
        head::check_id(&signal.name, "a signal", out);
        if signals.iter().any(|known| *known.name == *signal.name.value) {
            out.push(
                Diagnostic::new(
                    codes::SAME_SIGNAL,
                    signal.name.span,
                    format!("there is already a signal {}", quoted(&signal.name)),
                )
                .help("give it another name, or list everybody in the one `who`"),
            );
        }
        let until = match &signal.until {
            None => None,
            Some(until) => match head.names.steps.get(&*until.value) {
                Some(step) => Some(StepIndex::from(*step)),
                None => {
                    report_unknown_step(until, head, out);
                    None
                }
            },
        };
        signals.push(Signal {
            name: (*signal.name.value).into(),
            who: signal.who.iter().filter_map(|who| check_who(who, &view, &names, found, out)).collect(),
            until,
            then: signal.then.value,
        });
    }
    signals
}

/// Somebody who may send a signal: a name, or one `${ }` that gives a name or a list of names.
fn check_who(
    who: &authored::Who,
    view: &View<'_>,
    names: &Type,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Template> {
    let (template, kind) = view.whole(&who.0, false, found, out)?;
    if types::never_fits(&kind, &Type::Text) && types::never_fits(&kind, names) {
        out.push(
            Diagnostic::new(
                codes::TYPE_MISMATCH,
                who.0.span,
                format!("{} does not say who may send it", types::describe(&kind)),
            )
            .expected("the name of a person or a group, or a list of them"),
        );
        return None;
    }
    Some(template)
}

/// What each step needs: as written, and every step it reads. A step of `finally` waits for main steps to be over,
/// however they ended.
fn edges(
    drafts: &[Draft<'_>],
    reads: &[BTreeMap<u32, Vec<StepUse>>],
    needs: Vec<BTreeMap<u32, Need>>,
    out: &mut Diagnostics,
) -> Vec<BTreeMap<u32, Need>> {
    let mut edges = needs;
    for (at, draft) in drafts.iter().enumerate() {
        for (read, uses) in &reads[at] {
            let other = &drafts[*read as usize];
            if !draft.finally && other.finally {
                for used in uses {
                    out.push(
                        Diagnostic::new(
                            codes::NEEDS_FINALLY,
                            used.span,
                            format!(
                                "`{}` is a step of `finally`, which begins when the others are over",
                                other.id
                            ),
                        )
                        .help("move it to `steps`"),
                    );
                }
                continue;
            }
            edges[at].entry(*read).or_insert(Need::Succeeded);
        }
        if draft.finally {
            for (needed, need) in &mut edges[at] {
                if !drafts[*needed as usize].finally {
                    *need = Need::Finished;
                }
            }
        }
    }
    edges
}

fn report_cycle(
    cycle: &[u32],
    drafts: &[Draft<'_>],
    reads: &[BTreeMap<u32, Vec<StepUse>>],
    out: &mut Diagnostics,
) {
    const SHOWN: usize = 12;
    // The path is told as the file tells it: each step needs the next.
    let mut path: Vec<&str> =
        cycle.iter().chain(cycle.first()).rev().map(|at| drafts[*at as usize].id.value.as_str()).collect();
    let left_out = path.len().saturating_sub(SHOWN);
    if left_out > 0 {
        path.drain(SHOWN - 1..path.len() - 1);
        path.insert(SHOWN - 1, "…");
    }
    let first = &drafts[cycle[0] as usize];
    let mut diagnostic = Diagnostic::new(
        codes::CYCLE,
        first.id.span,
        format!("these steps wait for each other: {}", path.join(" → ")),
    )
    .help("remove one of these needs");
    for (index, at) in cycle.iter().enumerate().take(SHOWN) {
        let next = cycle[(index + 1) % cycle.len()];
        let (needed, by) = (&drafts[*at as usize], &drafts[next as usize]);
        let written = by.step.needs.iter().flatten().find(|need| need.step.value == needed.id.value);
        let span = match written {
            Some(need) => Some(need.step.span),
            None => reads[next as usize].get(at).and_then(|uses| uses.first()).map(|used| used.span),
        };
        if let Some(span) = span {
            diagnostic = diagnostic.label(span, format!("`{}` needs `{}`", by.id, needed.id));
        }
    }
    out.push(diagnostic);
}

/// A step's output is absent when the step has an `if`, or failed and was continued. Whoever reads it says what holds
/// then: the step with `default_output`, or the expression with `is defined` or `default`.
///
/// Steps of `finally` run however the run ended, so every main step may be absent for them.
fn check_absent(
    drafts: &[Draft<'_>],
    order: &[u32],
    edges: &[BTreeMap<u32, Need>],
    reads: &[BTreeMap<u32, Vec<StepUse>>],
    output_reads: &BTreeMap<u32, Vec<StepUse>>,
    out: &mut Diagnostics,
) {
    let continues = |at: u32| {
        let step = drafts[at as usize].step;
        step.on_failure.is_some_and(|on| on.value == AuthoredOnFailure::Continue)
    };
    // Blocked by a failure above that was continued.
    let mut may_block = vec![false; drafts.len()];
    for at in order {
        may_block[*at as usize] = edges[*at as usize].iter().any(|(above, need)| {
            *need == Need::Succeeded
                && (may_block[*above as usize]
                    || (continues(*above) && drafts[*above as usize].step.default_output.is_none()))
        });
    }
    let check = |read: u32, uses: &[StepUse], needs_it: bool, in_finally: bool, out: &mut Diagnostics| {
        let other = &drafts[read as usize];
        let why = if other.step.condition.is_some() {
            "it has an `if`"
        } else if continues(read) {
            "it goes on after a failure"
        } else if may_block[read as usize] && !needs_it {
            "a step above it goes on after a failure"
        } else if in_finally && !other.finally {
            "`finally` runs however the run ended"
        } else {
            return;
        };
        for used in uses.iter().filter(|used| !used.guarded) {
            match (&other.step.default_output, &used.field) {
                (Some(default), Some(field)) if default.get(field).is_none() => out.push(
                    Diagnostic::new(
                        codes::ABSENT_OUTPUT,
                        used.span,
                        format!(
                            "`{}` may not have run ({why}), and its `default_output` has no `{field}`",
                            other.id
                        ),
                    )
                    .label(default.span, "the default")
                    .help(format!("add `{field}` to the default")),
                ),
                (Some(_), _) => {}
                (None, _) => {
                    let path = used.field.as_deref().unwrap_or("FIELD");
                    let help = if other.step.for_each.is_some() {
                        format!("write `steps.{}.{path} | default([])` here", other.id)
                    } else {
                        format!(
                            "give step `{0}` a `default_output`, or write `steps.{0}.{path} | default(…)` here",
                            other.id
                        )
                    };
                    out.push(
                        Diagnostic::new(
                            codes::ABSENT_OUTPUT,
                            used.span,
                            format!("`{}` may not have run: {why}", other.id),
                        )
                        .label(other.id.span, "this step")
                        .help(help),
                    );
                }
            }
        }
    };
    for (at, uses) in reads.iter().enumerate() {
        for (read, uses) in uses {
            let needs_it = edges[at].get(read) == Some(&Need::Succeeded);
            check(*read, uses, needs_it, drafts[at].finally, out);
        }
    }
    for (read, uses) in output_reads {
        check(*read, uses, false, drafts[*read as usize].finally, out);
    }
}

/// After a commit point nothing is undone: not by a step below it, not by a signal.
fn check_commit_points(
    drafts: &[Draft<'_>],
    order: &[u32],
    edges: &[BTreeMap<u32, Need>],
    authored: &authored::Runbook,
    out: &mut Diagnostics,
) {
    // The first commit point at or above each step.
    let mut committed: Vec<Option<u32>> = vec![None; drafts.len()];
    for at in order {
        let above = edges[*at as usize].keys().find_map(|above| committed[*above as usize]);
        let own = drafts[*at as usize].step.commit_point.filter(|flag| flag.value).map(|_| *at);
        committed[*at as usize] = above.or(own);
    }
    for (at, draft) in drafts.iter().enumerate() {
        let (Some(point), Some(on)) = (committed[at], draft.step.on_failure) else { continue };
        if on.value == AuthoredOnFailure::Undo && !draft.finally {
            out.push(
                Diagnostic::new(
                    codes::UNDO_AFTER_COMMIT,
                    on.span,
                    format!("nothing is undone from the commit point `{}` on", drafts[point as usize].id),
                )
                .help("write `on_failure: stop` or `continue`"),
            );
        }
    }
    let positions: HashMap<&str, usize> =
        drafts.iter().enumerate().map(|(at, draft)| (draft.id.value.as_str(), at)).collect();
    for signal in authored.signals.iter().filter(|signal| signal.then.value == authored::SignalThen::Undo) {
        let late = match signal.until.as_ref().map(|until| positions.get(until.as_str()).copied()) {
            Some(Some(at)) => committed[at].filter(|point| *point as usize != at),
            Some(None) => None,
            None => committed.iter().flatten().next().copied(),
        };
        if let Some(point) = late {
            let span = signal.until.as_ref().map_or(signal.then.span, |until| until.span);
            out.push(
                Diagnostic::new(
                    codes::UNDO_AFTER_COMMIT,
                    span,
                    format!("nothing is undone from the commit point `{}` on", drafts[point as usize].id),
                )
                .help(format!("write `until: {}`", drafts[point as usize].id)),
            );
        }
    }
}

/// Names that nothing uses are probably slips.
fn lint_unused(head: &Head, authored: &authored::Runbook, found: &Found, out: &mut Diagnostics) {
    let mut unused = |what: &str, name: &At<String>| {
        out.push(
            Diagnostic::new(
                codes::UNUSED_NAME,
                name.span,
                format!("the {what} {} is not used", quoted(name)),
            )
            .help("remove it, or use it")
            .warning(),
        );
    };
    for (name, _) in authored.inputs.iter().filter(|(name, _)| !found.inputs.contains(&name.value)) {
        unused("input", name);
    }
    for (name, _) in authored.vars.iter().filter(|(name, _)| !found.vars.contains(&name.value)) {
        unused("var", name);
    }
    for (name, _) in authored.targets.iter().filter(|(name, _)| !found.targets.contains(&name.value)) {
        // One whose kind is unknown has been reported already.
        if head.targets.contains_key(&*name.value) {
            unused("target", name);
        }
    }
}
