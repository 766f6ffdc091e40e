{{/* A pod of the service: (list $ VERSION IMAGE), VERSION being its label for subsets. */}}
{{- define "tuneproof.pod" -}}
{{- $root := index . 0 -}}
{{- $service := $root.Values.fineTuningPipeline -}}
{{- $image := index . 2 -}}
metadata:
  labels:
    app: {{ include "tuneproof.name" $root }}
    tuneproof.io/pods: {{ index . 1 }}
    version: {{ index . 1 }}
    {{- include "tuneproof.labels" $root | nindent 4 }}
    {{- with $service.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
    {{- with $service.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tuneproof.serviceAccount" $root }}
  automountServiceAccountToken: {{ ternary "true" "false" (eq (include "tuneproof.callsCluster" $root) "yes") }}
  enableServiceLinks: false
  {{- include "tuneproof.pullSecrets" $root | nindent 2 }}
  terminationGracePeriodSeconds: {{ int $service.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "tuneproof.podSecurity" 10001 | nindent 4 }}
  initContainers:
    - name: migrate
      image: {{ include "tuneproof.image" $image | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      args: [migrate]
      env:
        {{- include "tuneproof.env" $root | nindent 8 }}
      {{- with $service.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml $service.resources | nindent 8 }}
      securityContext:
        {{- include "tuneproof.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "tuneproof.mounts" $root | nindent 8 }}
  containers:
    - name: {{ include "tuneproof.name" $root }}
      image: {{ include "tuneproof.image" $image | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      args: [serve, --log-level, {{ $service.logLevel }}]
      env:
        {{- include "tuneproof.env" $root | nindent 8 }}
      {{- with $service.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: 8686
          protocol: TCP
        - name: metrics
          containerPort: 9090
          protocol: TCP
        {{- if $service.gateways }}
        - name: gateway
          containerPort: 8687
          protocol: TCP
        {{- end }}
        {{- range $number := until (int $service.gateways) }}
        - name: metrics-{{ add $number 1 }}
          containerPort: {{ add 9091 $number }}
          protocol: TCP
        {{- end }}
      startupProbe:
        httpGet:
          path: /ready
          port: http
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet:
          path: /live
          port: http
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /ready
          port: http
        periodSeconds: 5
        timeoutSeconds: 3
      resources:
        {{- toYaml $service.resources | nindent 8 }}
      securityContext:
        {{- include "tuneproof.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "tuneproof.mounts" $root | nindent 8 }}
        {{- if include "tuneproof.persists" $root }}
        - name: shared
          mountPath: /data/tuneproof/datasets
          subPath: datasets
        {{- end }}
  volumes:
    {{- include "tuneproof.volumes" $root | nindent 4 }}
  {{- with $service.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end }}

{{/* How a Deployment of the service replaces its pods. */}}
{{- define "tuneproof.strategy" -}}
{{- if eq (include "tuneproof.accessMode" .) "ReadWriteOnce" -}}
type: Recreate
{{- else -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 1
  maxUnavailable: 0
{{- end -}}
{{- end }}
