package api

import (
	"os"
	"path/filepath"

	"gopkg.in/natefinch/lumberjack.v2"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit/policy"
	auditbuffered "k8s.io/apiserver/plugin/pkg/audit/buffered"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
)

// Audit files are rotated at auditMegabytes and auditBackups old ones are kept; auditBuffer events may wait for the disk.
const (
	auditBuffer    = 10_000
	auditMegabytes = 32
	auditBackups   = 4
)

// audit logs who did what, without bodies. Reads by the process itself and of health are left out.
func (b *builder) audit() error {
	if b.config.AuditLog == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(b.config.AuditLog), 0o700); err != nil {
		return err
	}
	reads := []string{"get", "list", "watch"}
	b.generic.AuditPolicyRuleEvaluator = policy.NewPolicyRuleEvaluator(&auditinternal.Policy{Rules: []auditinternal.PolicyRule{
		{Level: auditinternal.LevelNone, Users: []string{privilegedUser().GetName()}, Verbs: reads},
		{Level: auditinternal.LevelNone, NonResourceURLs: []string{"/healthz*", "/livez*", "/readyz*", "/version"}},
		{Level: auditinternal.LevelMetadata, OmitStages: []auditinternal.Stage{auditinternal.StageRequestReceived}},
	}})
	// lumberjack creates its file with mode 0600
	file := &lumberjack.Logger{Filename: b.config.AuditLog, MaxSize: auditMegabytes, MaxBackups: auditBackups}
	backend := auditlog.NewBackend(file, auditlog.FormatJson, auditv1.SchemeGroupVersion)
	b.generic.AuditBackend = auditbuffered.NewBackend(backend, auditbuffered.BatchConfig{BufferSize: auditBuffer, MaxBatchSize: 1})
	return nil
}
