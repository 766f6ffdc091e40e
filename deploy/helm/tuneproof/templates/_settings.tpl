{{/* What the service is told: files of one ConfigMap, and its environment. */}}

{{/* `tuneproof.json`: all that is in the values and has no documented file of its own. */}}
{{- define "tuneproof.settings" -}}
{{- $service := .Values.fineTuningPipeline -}}
{{- $optimized := $service.kubernetesOptimizations -}}
{{- $database := $optimized.connectionPools.database -}}
{{- $breakers := dict -}}
{{- range $name, $breaker := $optimized.circuitBreakers -}}
{{- $_ := set $breakers $name (dict "failure_threshold" (int $breaker.failureThreshold) "timeout" $breaker.timeout) -}}
{{- end -}}
{{- $settings := dict
  "store" (dict "pool_min_size" (int $database.minSize) "pool_size" (int $database.maxSize) "max_overflow" 0 "max_queries" (int $database.maxQueries) "max_idle_seconds" $database.maxInactiveLifetime "workers" (add (include "tuneproof.replicas" . | int) (include "tuneproof.surge" . | int)))
  "cache" (dict "max_connections" (int $optimized.connectionPools.redis.maxConnections) "health_check_interval" (int $optimized.connectionPools.redis.healthCheckInterval))
  "breakers" $breakers
  "server" (dict "drain_seconds" 5)
  "pipelines" (dict "default" (dict "schedule" (dict "driver" $service.schedule.driver)))
-}}
{{- with .Values.files.url -}}
{{- $_ := set $settings "files" (dict "url" . "cache_mb" (int $.Values.files.cacheMb)) -}}
{{- end -}}
{{- if .Values.trainer.enabled -}}
{{- $address := printf "http://%s-trainer:8700/v1" (include "tuneproof.name" .) -}}
{{- $_ := set $settings "providers" (dict "default" (dict "kind" "trainer" "base_url" $address "api_key_env" "TRAINER_API_KEY")) -}}
{{- end -}}
{{- $targets := dict -}}
{{- if .Values.modelsConfigMap.enabled -}}
{{- $_ := set $targets "models" (dict "kind" "configmap" "config_map" .Values.modelsConfigMap.name "restart" .Values.modelsConfigMap.restart) -}}
{{- end -}}
{{- if .Values.istio.enabled -}}
{{- $_ := set $targets "mesh" (dict "kind" "istio" "virtual_service" (include "tuneproof.name" .) "version" (last (splitList "/" .Values.istio.apiVersion))) -}}
{{- end -}}
{{- if $targets }}{{ $_ := set $settings "targets" $targets }}{{ end -}}
{{ mergeOverwrite $settings (deepCopy $service.settings) | toPrettyJson }}
{{- end }}

{{- define "tuneproof.secretEnv" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 }}
      {{- if index . 3 }}
      optional: true
      {{- end }}
{{- end }}

{{/* The environment of a pod of the service. */}}
{{- define "tuneproof.env" -}}
{{- $name := include "tuneproof.name" . -}}
- name: TUNEPROOF_CONFIG
  value: /etc/tuneproof
- name: TUNEPROOF_DIR
  value: /data/tuneproof
- name: TUNEPROOF_HOST
  value: 0.0.0.0
- name: HOME
  value: /data
- name: K8S_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{ include "tuneproof.databaseEnv" . }}
{{- with include "tuneproof.redisEnv" . }}
{{ . }}
{{- end }}
{{- if .Values.mlflow.enabled }}
- name: MLFLOW_TRACKING_URI
  value: http://{{ $name }}-mlflow:5000
{{- else if .Values.mlflow.trackingUri }}
- name: MLFLOW_TRACKING_URI
  value: {{ .Values.mlflow.trackingUri | quote }}
{{- else if .Values.mlflow.existingSecret }}
{{ include "tuneproof.secretEnv" (list "MLFLOW_TRACKING_URI" .Values.mlflow.existingSecret .Values.mlflow.key true) }}
{{- end }}
{{- if .Values.openai.existingSecret }}
{{ include "tuneproof.secretEnv" (list "OPENAI_API_KEY" .Values.openai.existingSecret .Values.openai.key .Values.trainer.enabled) }}
{{- end }}
{{- if .Values.trainer.enabled }}
{{ include "tuneproof.secretEnv" (list "TRAINER_API_KEY" .Values.trainer.existingSecret .Values.trainer.key true) }}
{{- end }}
{{- with .Values.fineTuningPipeline.publicUrl }}
- name: TUNEPROOF_PUBLIC_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.fineTuningPipeline.gateways }}
- name: TUNEPROOF_GATEWAYS
  value: {{ . | int | quote }}
{{- end }}
{{- if .Values.fineTuningPipeline.caBundle.configMap }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "PGSSLROOTCERT" }}
- name: {{ . }}
  value: /etc/tuneproof-ca/{{ $.Values.fineTuningPipeline.caBundle.key }}
{{- end }}
{{- end }}
{{- with .Values.fineTuningPipeline.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tuneproof.databaseEnv" -}}
{{- if .Values.postgresql.enabled -}}
{{- $secret := .Values.postgresql.auth.existingSecret | default (printf "%s-postgresql" (include "tuneproof.name" .)) -}}
{{ include "tuneproof.secretEnv" (list "DATABASE_URL" $secret "url" false) }}
{{- else -}}
{{ include "tuneproof.secretEnv" (list "DATABASE_URL" .Values.externalDatabase.existingSecret .Values.externalDatabase.key false) }}
{{- end -}}
{{- end }}

{{- define "tuneproof.redisEnv" -}}
{{- $name := include "tuneproof.name" . -}}
{{- if and .Values.redis.enabled .Values.redis.auth.enabled -}}
{{- $secret := .Values.redis.auth.existingSecret | default (printf "%s-redis" $name) -}}
{{ include "tuneproof.secretEnv" (list "REDIS_URL" $secret "url" false) }}
{{- else if .Values.redis.enabled -}}
- name: REDIS_URL
  value: redis://{{ $name }}-redis:6379/0
{{- else if .Values.externalRedis.existingSecret -}}
{{ include "tuneproof.secretEnv" (list "REDIS_URL" .Values.externalRedis.existingSecret .Values.externalRedis.key false) }}
{{- else if .Values.externalRedis.url -}}
- name: REDIS_URL
  value: {{ .Values.externalRedis.url | quote }}
{{- end -}}
{{- end }}

{{/* Where a pod of the service finds its files. The init container makes the data directory, so that it is its user's
own: a folder that only a mount makes would be root's, and would not be used for sockets. */}}
{{- define "tuneproof.mounts" -}}
- name: settings
  mountPath: /etc/tuneproof
  readOnly: true
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- if .Values.fineTuningPipeline.caBundle.configMap }}
- name: ca
  mountPath: /etc/tuneproof-ca
  readOnly: true
{{- end }}
{{- with .Values.fineTuningPipeline.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tuneproof.volumes" -}}
- name: settings
  configMap:
    name: {{ include "tuneproof.config" . }}
- name: data
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- if include "tuneproof.persists" . }}
- name: shared
  persistentVolumeClaim:
    claimName: {{ .Values.persistence.existingClaim | default (include "tuneproof.name" .) }}
{{- end }}
{{- with .Values.fineTuningPipeline.caBundle.configMap }}
- name: ca
  configMap:
    name: {{ . }}
{{- end }}
{{- with .Values.fineTuningPipeline.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
