package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"shoal/runtime/pods"
)

// defaultMode of content files.
const defaultMode int32 = 0o644

// content makes or updates a volume whose files come from objects.
func (m *Manager) content(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, now time.Time) (source, time.Time, error) {
	files, renew, err := m.files(ctx, pod, v, now)
	if err != nil {
		return source{}, time.Time{}, err
	}
	dir := m.memoryDir(pod.UID, v.Name)
	if err := makeDir(dir, 0o755); err != nil {
		return source{}, time.Time{}, err
	}
	chown := func(version string) error { return setOwnership(pod, version, true) }
	if _, err := writeContent(dir, files, chown); err != nil {
		return source{}, time.Time{}, err
	}
	next := now.Add(refreshEvery)
	if !renew.IsZero() && renew.Before(next) {
		next = renew
	}
	return source{path: dir, readOnly: true}, next, nil
}

// files collects the content of a volume. renew is when a token in it must be renewed.
func (m *Manager) files(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, now time.Time) (out map[string]file, renew time.Time, err error) {
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		out, err = m.configMapFiles(ctx, pod.Namespace, s.Name, s.Items, s.DefaultMode, s.Optional)
	case v.Secret != nil:
		s := v.Secret
		out, err = m.secretFiles(ctx, pod.Namespace, s.SecretName, s.Items, s.DefaultMode, s.Optional)
	case v.DownwardAPI != nil:
		out, err = m.downwardFiles(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
	default:
		return m.projectedFiles(ctx, pod, v, now)
	}
	return out, time.Time{}, err
}

// projectedFiles lays several sources over each other, later ones winning.
func (m *Manager) projectedFiles(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, now time.Time) (map[string]file, time.Time, error) {
	all := map[string]file{}
	var renew time.Time
	mode := v.Projected.DefaultMode
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		var files map[string]file
		var err error
		switch {
		case s.ConfigMap != nil:
			files, err = m.configMapFiles(ctx, pod.Namespace, s.ConfigMap.Name, s.ConfigMap.Items, mode, s.ConfigMap.Optional)
		case s.Secret != nil:
			files, err = m.secretFiles(ctx, pod.Namespace, s.Secret.Name, s.Secret.Items, mode, s.Secret.Optional)
		case s.DownwardAPI != nil:
			files, err = m.downwardFiles(pod, s.DownwardAPI.Items, mode)
		case s.ServiceAccountToken != nil:
			var at time.Time
			files, at, err = m.tokenFile(ctx, pod, s.ServiceAccountToken, mode, now)
			if renew.IsZero() || at.Before(renew) {
				renew = at
			}
		default:
			err = errors.New("this kind of projected source is not supported on this node")
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		maps.Copy(all, files)
	}
	return all, renew, nil
}

func (m *Manager) configMapFiles(ctx context.Context, namespace, name string, items []corev1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	var cm *corev1.ConfigMap
	err := error(apierrors.NewNotFound(corev1.Resource("configmaps"), name))
	if m.cfg.Objects.ConfigMap != nil {
		cm, err = m.cfg.Objects.ConfigMap(ctx, namespace, name)
	}
	if isOptional(optional) && apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return pick(data, items, mode, isOptional(optional), "configmap")
}

func (m *Manager) secretFiles(ctx context.Context, namespace, name string, items []corev1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	var secret *corev1.Secret
	err := error(apierrors.NewNotFound(corev1.Resource("secrets"), name))
	if m.cfg.Objects.Secret != nil {
		secret, err = m.cfg.Objects.Secret(ctx, namespace, name)
	}
	if isOptional(optional) && apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return pick(secret.Data, items, mode, isOptional(optional), "secret")
}

func isOptional(b *bool) bool { return b != nil && *b }

// pick turns keys into files: all of them, or those that items name.
func pick(data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional bool, kind string) (map[string]file, error) {
	out := map[string]file{}
	if items == nil {
		for k, v := range data {
			out[k] = file{data: v, mode: modeOf(nil, mode), uid: -1}
		}
		return out, nil
	}
	for _, item := range items {
		v, have := data[item.Key]
		if !have && optional {
			continue
		}
		if !have {
			return nil, fmt.Errorf("%s references non-existent %s key: %s", kind, kind, item.Key)
		}
		out[item.Path] = file{data: v, mode: modeOf(item.Mode, mode), uid: -1}
	}
	return out, nil
}

func modeOf(own, volume *int32) fs.FileMode {
	switch {
	case own != nil:
		return fs.FileMode(*own) & fs.ModePerm
	case volume != nil:
		return fs.FileMode(*volume) & fs.ModePerm
	}
	return fs.FileMode(defaultMode)
}

func (m *Manager) downwardFiles(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) (map[string]file, error) {
	out := map[string]file{}
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = pods.FieldValue(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			c := containerNamed(pod, item.ResourceFieldRef.ContainerName)
			if c == nil {
				return nil, fmt.Errorf("downward API file %q: no container %q", item.Path, item.ResourceFieldRef.ContainerName)
			}
			text, err = pods.ResourceFieldValue(c, item.ResourceFieldRef, m.cfg.Allocatable())
		}
		if err != nil {
			return nil, fmt.Errorf("downward API file %q: %w", item.Path, err)
		}
		out[item.Path] = file{data: []byte(text), mode: modeOf(item.Mode, mode), uid: -1}
	}
	return out, nil
}

func containerNamed(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
