{{/* Names, labels and images. */}}

{{- define "tuneproof.name" -}}
{{ .Values.fullnameOverride }}
{{- end }}

{{/* The ConfigMap with the settings. */}}
{{- define "tuneproof.config" -}}
{{- $name := include "tuneproof.name" . -}}
{{ ternary "fine-tuning-config" (printf "%s-config" $name) (eq $name "fine-tuning-pipeline") }}
{{- end }}

{{- define "tuneproof.labels" -}}
app.kubernetes.io/name: tuneproof
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of an object: (list $ NAME APP ANNOTATIONS), APP being its label `app`. */}}
{{- define "tuneproof.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := merge (dict) (index . 3) $root.Values.commonAnnotations -}}
name: {{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  app: {{ index . 2 }}
  {{- include "tuneproof.labels" $root | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Annotations of what is made once: (list $ WEIGHT). */}}
{{- define "tuneproof.once" -}}
{{- $root := index . 0 -}}
helm.sh/resource-policy: keep
{{- if eq $root.Values.createOnce "hook" }}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: hook-failed
{{- end }}
{{- end }}

{{/* "yes" where an object that is made once is to be rendered: (list $ APIVERSION KIND NAME). Helm 3.8 has no hook for
"if it is not there", so the cluster is asked; offline nothing is there. */}}
{{- define "tuneproof.makes" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.createOnce "object" -}}
yes
{{- else if eq $root.Values.createOnce "hook" -}}
{{- if not (lookup (index . 1) (index . 2) $root.Release.Namespace (index . 3)) -}}
yes
{{- end -}}
{{- end -}}
{{- end }}

{{- define "tuneproof.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end }}

{{- define "tuneproof.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tuneproof.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "tuneproof.name" .) }}
{{- end }}

{{/* Whether the service calls the API server. */}}
{{- define "tuneproof.callsCluster" -}}
{{- if or .Values.modelsConfigMap.enabled .Values.istio.enabled -}}
yes
{{- end -}}
{{- end }}

{{- define "tuneproof.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tuneproof.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "tuneproof.meshHost" -}}
{{ .Values.istio.host | default (printf "%s.%s.svc.cluster.local" (include "tuneproof.name" .) .Release.Namespace) }}
{{- end }}

{{/* Labels of a pod that is not the service's, whose label `app` is the dot of (list $ APP). */}}
{{- define "tuneproof.podLabels" -}}
app: {{ index . 1 }}
{{ include "tuneproof.labels" (index . 0) }}
{{- end }}

{{/* The claim `data` of a StatefulSet. */}}
{{- define "tuneproof.claim" -}}
- metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}

{{/* A container that calls the service: (list $ WORD...), the words being those of the command line. */}}
{{- define "tuneproof.caller" -}}
{{- $root := index . 0 -}}
{{- $token := $root.Values.serviceToken -}}
image: {{ include "tuneproof.image" $root.Values.fineTuningPipeline.image | quote }}
imagePullPolicy: {{ $root.Values.fineTuningPipeline.image.pullPolicy }}
args: {{ rest . | toJson }}
env:
  - name: TUNEPROOF_URL
    value: http://{{ include "tuneproof.name" $root }}:8686
  {{- include "tuneproof.secretEnv" (list "TUNEPROOF_TOKEN" $token.existingSecret $token.key false) | nindent 2 }}
  - name: TUNEPROOF_DIR
    value: /data/tuneproof
  - name: HOME
    value: /data
securityContext:
  {{- include "tuneproof.containerSecurity" $root | nindent 2 }}
volumeMounts:
  - name: data
    mountPath: /data
{{- end }}
