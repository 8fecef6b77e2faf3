//! `haypile plan`: what a plan means, and whether this version runs it. Called by `main`.

use std::process::ExitCode;

use haypile_service::error::Error;
use haypile_service::plan::Plan;
use serde_json::json;

use crate::cli::PlanArgs;
use crate::table;

/// Prints the plan's groups. Exit status 1 if it does not run here.
///
/// # Errors
/// When the text is no plan.
pub fn run(arguments: &PlanArgs) -> Result<ExitCode, Error> {
    let plan: Plan = arguments.plan.parse()?;
    let runnable = plan.check_runnable();
    if arguments.json {
        let groups: Vec<_> = plan.groups().iter().map(group_json).collect();
        table::print(&json!({
            "plan": plan.to_string(),
            "groups": groups,
            "runs": runnable.is_ok(),
        }));
    } else {
        for group in plan.groups() {
            let servers = group.members.iter().map(|member| member.1).max().unwrap_or(0);
            let parts: Vec<_> = group
                .members
                .iter()
                .map(|(component, count)| format!("{count} {}", component.name()))
                .collect();
            table::say(&format!("{servers} server(s): {}", parts.join(", ")));
        }
    }
    match runnable {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("haypile: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn group_json(group: &haypile_service::plan::Group) -> serde_json::Value {
    group
        .members
        .iter()
        .map(|(component, count)| (component.notation().to_string(), json!(count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
