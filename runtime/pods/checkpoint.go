package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
)

// checkpoint is what the agent keeps on disk of each pod, so that its successor goes on without the cluster: the pod as last seen and
// the record of its plan. It names secrets, and does not hold any.
type checkpoint struct {
	Pod    *corev1.Pod
	Record Record
}

const checkpointName = "pod.json"

// saveCheckpoint replaces the checkpoint atomically. It is not synced: after a crash of the host containers are gone too.
func (p paths) saveCheckpoint(c checkpoint) error {
	dir := p.pod(string(c.Pod.UID))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	next := filepath.Join(dir, checkpointName+".new")
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := os.Rename(next, filepath.Join(dir, checkpointName)); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// loadCheckpoints reads all checkpoints. Broken ones come back as errors beside the good ones, with the UID in the text.
func (p paths) loadCheckpoints() ([]checkpoint, error) {
	entries, err := os.ReadDir(p.pods())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	var out []checkpoint
	var broken []error
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(p.pods(), e.Name(), checkpointName))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var c checkpoint
		if err == nil {
			err = json.Unmarshal(data, &c)
		}
		if err == nil && (c.Pod == nil || string(c.Pod.UID) != e.Name()) {
			err = errors.New("not a checkpoint of this pod")
		}
		if err != nil {
			broken = append(broken, fmt.Errorf("checkpoint of %s: %w", e.Name(), err))
			continue
		}
		out = append(out, c)
	}
	return out, errors.Join(broken...)
}
