//! The manifests, held to the API's kinds field by field, to each other, to the program and to the rule files.

use std::fs;
use std::process::Command;

use serde_yaml_ng::Value;

use crate::support::kubernetes::{Container, Deployment, DnsPolicy, Object, Of, Rule, StrategyKind, read};
use crate::support::root::source;
use crate::support::tools;
use crate::support::world::PROGRAM;

const FILES: [&str; 2] = ["t3-prober.yaml", "servicemonitor.yaml"];
const NAME: &str = "app.kubernetes.io/name";

fn text(file: &str) -> String {
    fs::read_to_string(source("deploy/kubernetes").join(file)).expect(file)
}

/// What rules.sh prints.
fn rules() -> String {
    let output = Command::new(source("deploy/kubernetes/rules.sh")).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn objects() -> Vec<Object> {
    let texts = FILES.iter().map(|file| text(file)).chain([rules()]);
    texts.flat_map(|text| read(&text).unwrap_or_else(|error| panic!("{error} in {text}"))).collect()
}

fn deployment(objects: &[Object]) -> &Of<Deployment> {
    let found = objects.iter().find_map(|object| match object {
        Object::Deployment(deployment) => Some(deployment),
        _ => None,
    });
    found.expect("a deployment")
}

fn container(objects: &[Object]) -> &Container {
    let containers = &deployment(objects).spec.template.spec.containers;
    assert_eq!(containers.len(), 1);
    &containers[0]
}

#[test]
fn every_object_is_what_the_api_takes_with_its_own_version_in_one_namespace() {
    let objects = objects();
    assert_eq!(objects.len(), 7);
    for object in &objects {
        assert_eq!(object.version(), object.expected_version(), "{object:?}");
        let metadata = object.metadata();
        let is_namespace = matches!(object, Object::Namespace(_));
        assert_eq!(metadata.name.as_deref(), Some(if is_namespace { "t3" } else { "t3-prober" }));
        assert_eq!(metadata.namespace.as_deref(), if is_namespace { None } else { Some("t3") });
    }
}

#[test]
fn a_field_that_the_api_does_not_have_a_missing_one_and_a_wrong_type_are_refused() {
    let sound = text("t3-prober.yaml");
    for (this, that) in [
        ("hostNetwork: true", "hostNetworking: true"),
        ("  replicas: 1", "  replica: 1"),
        ("runAsNonRoot: true", "runAsNonRoot: \"yes\""),
        ("      serviceAccountName: t3-prober\n", ""),
        ("type: Recreate", "type: Replace"),
        ("drop: [ALL]", "drops: [ALL]"),
        ("kind: Deployment", "kind: Deploymnt"),
        ("type: Socket", "type: socket"),
        ("containerPort: 9780", "containerPort: 97800"),
    ] {
        assert!(sound.contains(this), "nothing to plant '{that}' in");
        assert!(read(&sound.replacen(this, that, 1)).is_err(), "{that} is not seen");
    }
    let rules = rules();
    assert!(read(&rules.replacen("annotations:", "annotation:", 1)).is_err());
    assert!(read(&text("servicemonitor.yaml").replacen("jobLabel", "joblabel", 1)).is_err());
}

#[test]
fn what_selects_finds_what_it_selects_and_the_job_is_the_one_that_the_alerts_ask_for() {
    let objects = objects();
    let pods = &deployment(&objects).spec.template.metadata.labels;
    assert_eq!(&deployment(&objects).spec.selector.match_labels, pods);
    let container = container(&objects);
    for object in &objects {
        match object {
            Object::Service(service) => {
                assert_eq!(&service.spec.selector, pods);
                assert_eq!(service.metadata.labels[NAME], "t3-prober", "the job of the alerts");
                let port = &service.spec.ports[0];
                let target = container.ports.iter().find(|open| open.name == port.target_port);
                assert_eq!(target.map(|open| open.container_port), Some(port.port));
            }
            Object::ServiceMonitor(monitor) => {
                assert_eq!(monitor.spec.job_label, NAME);
                assert_eq!(&monitor.spec.selector.match_labels, pods, "the service has the same label");
                let endpoint = &monitor.spec.endpoints[0];
                assert_eq!((endpoint.port.as_str(), endpoint.path.as_str()), ("operator", "/metrics"));
                assert!(objects.iter().any(|object| matches!(
                    object, Object::Service(service) if service.spec.ports[0].name == endpoint.port
                )));
            }
            _ => {}
        }
    }
}

#[test]
fn the_pod_has_no_privilege_one_writer_of_its_history_and_every_volume_that_it_mounts() {
    let objects = objects();
    let Of { spec, .. } = deployment(&objects);
    let (pod, container) = (&spec.template.spec, container(&objects));
    assert_eq!((spec.replicas, &spec.strategy.kind), (1, &StrategyKind::Recreate));
    assert!(pod.security_context.run_as_non_root && pod.security_context.run_as_user != 0);
    assert!(pod.host_network && pod.dns_policy == DnsPolicy::ClusterFirstWithHostNet);
    assert!(!pod.automount_service_account_token);
    let security = &container.security_context;
    assert!(!security.allow_privilege_escalation && security.read_only_root_filesystem);
    assert_eq!(security.capabilities.drop, ["ALL"]);
    assert!(container.image.contains(':') && !container.image.ends_with(":latest"));
    let written: Vec<_> = container.volume_mounts.iter().filter(|mount| !mount.read_only).collect();
    let written: Vec<_> = written.iter().map(|mount| mount.mount_path.as_str()).collect();
    assert_eq!(written, ["/run/t3-prober-helper.sock", "/var/lib/t3-prober"]);
    let mut mounted: Vec<_> = container.volume_mounts.iter().map(|mount| &mount.name).collect();
    let mut volumes: Vec<_> = pod.volumes.iter().map(|volume| &volume.name).collect();
    mounted.sort();
    volumes.sort();
    assert_eq!(mounted, volumes);
    for volume in &pod.volumes {
        assert!(volume.config_map.is_some() != volume.host_path.is_some(), "{}", volume.name);
        let mount = container.volume_mounts.iter().find(|mount| mount.name == volume.name).expect("mounted");
        if let Some(host) = &volume.host_path {
            assert_eq!(host.path, mount.mount_path, "the node's paths are those of the configuration");
        }
    }
    let accounts = objects.iter().any(|object| matches!(
        object, Object::ServiceAccount(account)
            if account.metadata.name.as_deref() == Some(&pod.service_account_name) && !account.automount_service_account_token
    ));
    assert!(accounts, "the account of the pod is there");
}

#[test]
fn the_program_takes_the_arguments_the_configuration_and_the_paths_of_the_probes() {
    let objects = objects();
    let container = container(&objects);
    let tried = Command::new(PROGRAM).args(&container.args).arg("--help").output().expect("the program");
    assert!(tried.status.success(), "{tried:?}");
    let config = objects.iter().find_map(|object| match object {
        Object::ConfigMap(map) => map.data.get("config.toml"),
        _ => None,
    });
    let config = config.expect("a configuration");
    assert!(config.contains(&format!("listen = \"0.0.0.0:{}\"", container.ports[0].container_port)));
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("config.toml"), config).expect("written");
    let mut check = Command::new(PROGRAM);
    let output =
        check.args(["check", "--config"]).arg(dir.path().join("config.toml")).output().expect("it runs");
    assert_ne!(output.status.code(), Some(78), "{output:?}");
    let mounted =
        deployment(&objects).spec.template.spec.volumes.iter().find_map(|volume| volume.config_map.as_ref());
    assert_eq!(mounted.map(|map| map.name.as_str()), Some("t3-prober"));
    for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe] {
        assert_eq!(probe.http_get.port, container.ports[0].name);
        assert!(["/-/healthy", "/-/ready"].contains(&probe.http_get.path.as_str()));
    }
}

#[test]
fn the_prometheus_rule_holds_exactly_the_rules_of_the_rule_files() {
    let rule: Value = serde_yaml_ng::from_str(&rules()).expect("YAML");
    let mut files: Vec<_> = fs::read_dir(source("alerts"))
        .expect("the rules")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect();
    files.sort();
    let groups = |path| -> Vec<Value> {
        let file: Value =
            serde_yaml_ng::from_str(&fs::read_to_string(path).expect("readable")).expect("YAML");
        file["groups"].as_sequence().expect("groups").clone()
    };
    let expected: Vec<_> = files.into_iter().flat_map(groups).collect();
    assert!(expected.len() >= 5);
    assert_eq!(rule["spec"]["groups"].as_sequence(), Some(&expected));
    let objects = objects();
    let typed = objects.iter().find_map(|object| match object {
        Object::PrometheusRule(rule) => Some(rule.spec.groups.iter().flat_map(|group| &group.rules)),
        _ => None,
    });
    let (mut alerts, mut recordings) = (0, 0);
    for rule in typed.expect("the rule") {
        match rule {
            Rule::Alert(alert) if alert.alert.starts_with("T3") => alerts += 1,
            Rule::Record(recording) if recording.record.contains(':') => recordings += 1,
            Rule::Alert(_) | Rule::Record(_) => panic!("{rule:?}"),
        }
    }
    assert!(alerts > 30 && recordings > 5, "{alerts} alerts, {recordings} recordings");
}

#[test]
fn shellcheck_has_nothing_to_say_about_the_script_that_prints_the_rules() {
    let Some(shellcheck) = tools::find("shellcheck") else { return };
    let output =
        Command::new(shellcheck).arg(source("deploy/kubernetes/rules.sh")).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
