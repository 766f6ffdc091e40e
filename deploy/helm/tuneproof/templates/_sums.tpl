{{/* What this release asks of the cluster, added up. */}}

{{/* A quantity of CPU in thousandths. */}}
{{- define "tuneproof.cpu" -}}
{{- $quantity := toString . -}}
{{- if hasSuffix "m" $quantity -}}
{{ trimSuffix "m" $quantity | int64 }}
{{- else -}}
{{ mulf (float64 $quantity) 1000.0 | int64 }}
{{- end -}}
{{- end }}

{{/* A quantity of memory in bytes. */}}
{{- define "tuneproof.memory" -}}
{{- $quantity := toString . -}}
{{- $units := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 -}}
{{- $found := dict "factor" 1.0 "number" $quantity -}}
{{- range $unit, $factor := $units -}}
{{- if hasSuffix $unit $quantity -}}
{{- $_ := set $found "factor" $factor -}}
{{- $_ := set $found "number" (trimSuffix $unit $quantity) -}}
{{- end -}}
{{- end -}}
{{ mulf (float64 $found.number) $found.factor | int64 }}
{{- end }}

{{/* Pods of the service at most, but for those that a rolling update adds. */}}
{{- define "tuneproof.replicas" -}}
{{- $service := .Values.fineTuningPipeline -}}
{{- $main := ternary $service.autoscaling.maxReplicas $service.replicaCount $service.autoscaling.enabled -}}
{{- add $main (ternary .Values.istio.candidate.replicaCount 0 (and .Values.istio.enabled .Values.istio.candidate.enabled)) -}}
{{- end }}

{{/* Pods that a rolling update adds: one of each Deployment of the service; none where they take turns. */}}
{{- define "tuneproof.surge" -}}
{{- if eq (include "tuneproof.accessMode" .) "ReadWriteOnce" -}}
0
{{- else -}}
{{ ternary 2 1 (and .Values.istio.enabled .Values.istio.candidate.enabled) }}
{{- end -}}
{{- end }}

{{/* "yes" where datasets are on a claim; an object store takes its place. */}}
{{- define "tuneproof.persists" -}}
{{- if and .Values.persistence.enabled (not .Values.files.url) -}}
yes
{{- end -}}
{{- end }}

{{- define "tuneproof.accessMode" -}}
{{- if include "tuneproof.persists" . -}}
{{- .Values.persistence.accessMode | default (ternary "ReadWriteMany" "ReadWriteOnce" (gt (include "tuneproof.replicas" . | int) 1)) -}}
{{- end -}}
{{- end }}

{{/* "yes" where MLflow keeps its files on the claim of the service. */}}
{{- define "tuneproof.mlflowShares" -}}
{{- if and .Values.mlflow.enabled (eq (include "tuneproof.accessMode" .) "ReadWriteMany") -}}
yes
{{- end -}}
{{- end }}

{{/* Connections that pods keep to the database: the pool, and 8 for the engine, its lock and the listeners. */}}
{{- define "tuneproof.connections" -}}
{{- $each := add .Values.fineTuningPipeline.kubernetesOptimizations.connectionPools.database.maxSize 8 -}}
{{ mul $each (add (include "tuneproof.replicas" . | int) (include "tuneproof.surge" . | int)) }}
{{- end }}

{{/* Each pod that this release may have at once: {"items": [{name, count, resources}]}. */}}
{{- define "tuneproof.pods" -}}
{{- $service := add (include "tuneproof.replicas" . | int) (include "tuneproof.surge" . | int) -}}
{{- $items := list (dict "name" "service" "count" $service "resources" .Values.fineTuningPipeline.resources) -}}
{{- if eq .Values.fineTuningPipeline.schedule.driver "external" -}}
{{- $items = append $items (dict "name" "job" "count" 1 "resources" .Values.cronJob.resources) -}}
{{- end -}}
{{- if .Values.trainer.enabled -}}
{{- $items = append $items (dict "name" "trainer" "count" 1 "resources" .Values.trainer.resources) -}}
{{- end -}}
{{- if .Values.postgresql.enabled -}}
{{- $items = append $items (dict "name" "postgresql" "count" 1 "resources" .Values.postgresql.primary.resources) -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- $items = append $items (dict "name" "redis" "count" 1 "resources" .Values.redis.master.resources) -}}
{{- end -}}
{{- if .Values.mlflow.enabled -}}
{{- $items = append $items (dict "name" "mlflow" "count" 1 "resources" .Values.mlflow.trackingServer.resources) -}}
{{- end -}}
{{ dict "items" $items | toJson }}
{{- end }}

{{/* Claims of this release. */}}
{{- define "tuneproof.claims" -}}
{{- $claims := list -}}
{{- if and (include "tuneproof.persists" .) (not .Values.persistence.existingClaim) }}{{ $claims = append $claims "service" }}{{ end -}}
{{- if .Values.postgresql.enabled }}{{ $claims = append $claims "postgresql" }}{{ end -}}
{{- if .Values.redis.enabled }}{{ $claims = append $claims "redis" }}{{ end -}}
{{- if and .Values.mlflow.enabled (not (include "tuneproof.mlflowShares" .)) }}{{ $claims = append $claims "mlflow" }}{{ end -}}
{{- if and .Values.trainer.enabled (not .Values.trainer.persistence.existingClaim) }}{{ $claims = append $claims "trainer" }}{{ end -}}
{{ dict "items" $claims | toJson }}
{{- end }}
