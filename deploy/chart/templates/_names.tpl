{{- define "synapsefs.labels" -}}
app.kubernetes.io/name: synapsefs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "synapsefs.sidecar" -}}
{{- .Values.sidecars.registry }}{{ index .Values.sidecars .Name -}}
{{- end -}}
