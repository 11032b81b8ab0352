#!/bin/sh
# Prints the rule files of alerts/ as one PrometheusRule: deploy/kubernetes/rules.sh | kubectl apply -f -
set -eu
cd "$(dirname "$0")/../.."
cat <<'HEAD'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: t3-prober
  namespace: t3
  labels:
    app.kubernetes.io/name: t3-prober
spec:
  groups:
HEAD
for rules in alerts/*.yml; do
  sed -e '1,/^groups:/d' -e 's/^\(.\)/  \1/' "$rules"
done
