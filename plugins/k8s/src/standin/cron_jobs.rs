//! Cron jobs: a job for each due time, by the stand-in's clock.
//!
//! As the real controller does it, of several due times that have passed since it last looked only the latest is made up for, and
//! one that is older than `startingDeadlineSeconds` is missed. A cron job that the files give no status is at rest, as other
//! workloads are.

use std::str::FromStr as _;

use croner::Cron;
use farrier_model::time::Timestamp;
use serde_json::{Value as Json, json};

use super::controllers::{Objects, all, belongs, reference, set_status, system};
use super::delete::{Options, delete_at};
use super::kinds::Kind;
use super::world::{Key, World, at, is_deleting, stamp, text, time_at};
use super::write::create_at;

pub(crate) fn cron_jobs(world: &mut World, now: Timestamp) {
    for (key, cron_job) in all(world, "CronJob") {
        if is_deleting(&cron_job) || !cron_job["status"].is_object() {
            continue;
        }
        let jobs: Objects = world
            .named("Job", &key.namespace)
            .filter(|(_, job)| belongs(job, &cron_job))
            .map(|(key, job)| (key.clone(), job.clone()))
            .collect();
        let mut status = json!({});
        if let Some(ended) =
            jobs.iter().filter_map(|(_, job)| time_at(job, &["status", "completionTime"])).max()
            && time_at(&cron_job, &["status", "lastSuccessfulTime"]).is_none_or(|known| known < ended)
        {
            status["lastSuccessfulTime"] = stamp(ended).into();
        }
        forget(world, &cron_job, &jobs, now);
        if let Some(due) = due(&cron_job, now) {
            let active: Vec<Key> =
                jobs.iter().filter(|(_, job)| !is_over(job)).map(|(key, _)| key.clone()).collect();
            let policy = text(&cron_job, &["spec", "concurrencyPolicy"]).unwrap_or("Allow");
            // A due time that another job stands in the way of is not lost: it is looked at again.
            if policy != "Forbid" || active.is_empty() {
                if policy == "Replace" {
                    for job in &active {
                        let _ = delete_at(world, job, &Options::default(), now);
                    }
                }
                if begin(world, &key, &cron_job, due, now) {
                    status["lastScheduleTime"] = stamp(due).into();
                }
            }
        }
        let active: Vec<Json> = world
            .named("Job", &key.namespace)
            .filter(|(_, job)| belongs(job, &cron_job) && !is_over(job) && !is_deleting(job))
            .map(|(key, job)| {
                json!({ "apiVersion": "batch/v1", "kind": "Job", "name": key.name, "namespace": key.namespace,
                        "uid": job["metadata"]["uid"] })
            })
            .collect();
        if !active.is_empty() || at(&cron_job, &["status", "active"]).is_some() {
            status["active"] = active.into();
        }
        set_status(world, &key, status, now);
    }
}

/// The latest due time that has come and was not looked at.
fn due(cron_job: &Json, now: Timestamp) -> Option<Timestamp> {
    if cron_job["spec"]["suspend"] == true {
        return None;
    }
    let since = time_at(cron_job, &["status", "lastScheduleTime"])
        .or_else(|| time_at(cron_job, &["metadata", "creationTimestamp"]))?;
    let zone = text(cron_job, &["spec", "timeZone"]).unwrap_or("UTC");
    let pattern = Cron::from_str(text(cron_job, &["spec", "schedule"])?).ok()?;
    let wall = now.in_tz(zone).ok()?;
    let due = pattern.find_previous_occurrence(&wall, true).ok()?.timestamp();
    let late = cron_job["spec"]["startingDeadlineSeconds"]
        .as_i64()
        .is_some_and(|most| now.as_second() - due.as_second() > most);
    (due > since && !late).then_some(due)
}

fn begin(world: &mut World, key: &Key, cron_job: &Json, due: Timestamp, now: Timestamp) -> bool {
    // The name is the due time's, so that a job is never made twice.
    let name = format!("{}-{}", key.name, due.as_second() / 60);
    let job_key = Key::new(Kind::index("Job"), &key.namespace, &name);
    let template = &cron_job["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert("batch.kubernetes.io/cronjob-scheduled-timestamp".into(), stamp(due).into());
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": reference(key, cron_job),
        },
        "spec": template["spec"],
    });
    let _ = job_key.kind().prune(&mut job);
    world.get(&job_key).is_some() || create_at(world, &job_key, job, Some(system(now)), now).is_ok()
}

fn is_over(job: &Json) -> bool {
    ended_as(job, "Complete") || ended_as(job, "Failed")
}

fn ended_as(job: &Json, kind: &str) -> bool {
    let conditions = at(job, &["status", "conditions"]).and_then(Json::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// Deletes ended jobs beyond what the history keeps, the oldest first.
fn forget(world: &mut World, cron_job: &Json, jobs: &Objects, now: Timestamp) {
    for (kind, field, default) in
        [("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)]
    {
        let kept = cron_job["spec"][field].as_u64().unwrap_or(default) as usize;
        let mut ended: Vec<&(Key, std::sync::Arc<Json>)> =
            jobs.iter().filter(|(_, job)| ended_as(job, kind) && !is_deleting(job)).collect();
        ended.sort_by_key(|(_, job)| time_at(job, &["status", "startTime"]));
        let surplus = ended.len().saturating_sub(kept);
        for (key, _) in &ended[..surplus] {
            let _ = delete_at(world, key, &Options::default(), now);
        }
    }
}
