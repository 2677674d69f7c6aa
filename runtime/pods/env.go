package pods

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// environment resolves the environment of a container: services, envFrom, env, in this order, later ones winning, with $(NAME) in values
// replaced by what was defined before. pod carries its addresses in its status.
func environment(ctx context.Context, objects Objects, pod *corev1.Pod, c *corev1.Container, allocatable corev1.ResourceList) ([]EnvVar, error) {
	e := &envBuilder{values: map[string]string{}}
	e.set("HOSTNAME", hostname(pod))
	if err := e.services(ctx, objects, pod); err != nil {
		return nil, err
	}
	for _, from := range c.EnvFrom {
		if err := e.from(ctx, objects, pod.Namespace, from); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		v := &c.Env[i]
		if v.ValueFrom == nil {
			e.set(v.Name, Expand(v.Value, e.values))
			continue
		}
		value, found, err := envValue(ctx, objects, pod, c, v.ValueFrom, allocatable)
		if err != nil {
			return nil, err
		}
		if found {
			e.set(v.Name, value)
		}
	}
	return e.list(), nil
}

// envBuilder is a map that remembers the order of its keys.
type envBuilder struct {
	order  []string
	values map[string]string
}

func (e *envBuilder) set(name, value string) {
	if _, have := e.values[name]; !have {
		e.order = append(e.order, name)
	}
	e.values[name] = value
}

func (e *envBuilder) list() []EnvVar {
	out := make([]EnvVar, len(e.order))
	for i, name := range e.order {
		out[i] = EnvVar{Name: name, Value: e.values[name]}
	}
	return out
}

// services adds variables for the API's own service, and for all services of the namespace unless enableServiceLinks is off.
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
func (e *envBuilder) services(ctx context.Context, objects Objects, pod *corev1.Pod) error {
	if objects.Services == nil {
		return nil
	}
	var list []*corev1.Service
	api, err := objects.Services(ctx, corev1.NamespaceDefault)
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, s := range api {
		if s.Name == "kubernetes" {
			list = append(list, s)
		}
	}
	if links := pod.Spec.EnableServiceLinks; links == nil || *links {
		own := api
		if pod.Namespace != corev1.NamespaceDefault {
			if own, err = objects.Services(ctx, pod.Namespace); err != nil {
				return fmt.Errorf("list services: %w", err)
			}
		}
		own = slices.Clone(own)
		slices.SortFunc(own, func(a, b *corev1.Service) int { return strings.Compare(a.Name, b.Name) })
		list = append(list, own...)
	}
	for _, s := range list {
		e.service(s)
	}
	return nil
}

func (e *envBuilder) service(s *corev1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	host := ip
	if strings.Contains(ip, ":") {
		host = "[" + ip + "]"
	}
	name := envName(s.Name)
	port := func(p corev1.ServicePort) string { return strconv.Itoa(int(p.Port)) }
	e.set(name+"_SERVICE_HOST", ip)
	e.set(name+"_SERVICE_PORT", port(s.Spec.Ports[0]))
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			e.set(name+"_SERVICE_PORT_"+envName(p.Name), port(p))
		}
	}
	for i, p := range s.Spec.Ports {
		proto := strings.ToLower(string(p.Protocol))
		if proto == "" {
			proto = "tcp"
		}
		url := proto + "://" + host + ":" + port(p)
		if i == 0 {
			e.set(name+"_PORT", url)
		}
		prefix := name + "_PORT_" + port(p) + "_" + strings.ToUpper(proto)
		e.set(prefix, url)
		e.set(prefix+"_PROTO", proto)
		e.set(prefix+"_PORT", port(p))
		e.set(prefix+"_ADDR", ip)
	}
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

// from adds all keys of a ConfigMap or Secret, sorted.
func (e *envBuilder) from(ctx context.Context, objects Objects, namespace string, from corev1.EnvFromSource) error {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := objects.configMap(ctx, namespace, from.ConfigMapRef.Name)
		if skip, err := absent(err, from.ConfigMapRef.Optional); skip || err != nil {
			return err
		}
		data = cm.Data
	case from.SecretRef != nil:
		secret, err := objects.secret(ctx, namespace, from.SecretRef.Name)
		if skip, err := absent(err, from.SecretRef.Optional); skip || err != nil {
			return err
		}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	keys := make([]string, 0, len(data))
	for k := range data {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		e.set(from.Prefix+k, data[k])
	}
	return nil
}

// absent sorts an error out: an optional object that is not there is skipped.
func absent(err error, optional *bool) (skip bool, _ error) {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return true, nil
	}
	return false, err
}

func envValue(ctx context.Context, objects Objects, pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, allocatable corev1.ResourceList) (value string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = FieldValue(pod, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		of := c
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			if of = findContainer(pod, name); of == nil {
				return "", false, fmt.Errorf("resourceFieldRef: no container %q", name)
			}
		}
		value, err = ResourceFieldValue(of, from.ResourceFieldRef, allocatable)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := objects.configMap(ctx, pod.Namespace, ref.Name)
		if skip, err := absent(err, ref.Optional); skip || err != nil {
			return "", false, err
		}
		if value, found = cm.Data[ref.Key]; !found && (ref.Optional == nil || !*ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return value, found, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret, err := objects.secret(ctx, pod.Namespace, ref.Name)
		if skip, err := absent(err, ref.Optional); skip || err != nil {
			return "", false, err
		}
		raw, found := secret.Data[ref.Key]
		if !found && (ref.Optional == nil || !*ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return string(raw), found, nil
	}
	return "", false, fmt.Errorf("unsupported source of an environment variable")
}

func (o Objects) configMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	if o.ConfigMap == nil {
		return nil, apierrors.NewNotFound(corev1.Resource("configmap"), name)
	}
	return o.ConfigMap(ctx, namespace, name)
}

func (o Objects) secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	if o.Secret == nil {
		return nil, apierrors.NewNotFound(corev1.Resource("secret"), name)
	}
	return o.Secret(ctx, namespace, name)
}

// Expand replaces $(NAME) by values; unknown names stay as they are and $$ is a plain $.
// https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
func Expand(s string, values map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		rest := s[i+1:]
		switch end := strings.IndexByte(rest, ')'); {
		case rest[0] == '$':
			b.WriteByte('$')
			s = rest[1:]
		case rest[0] == '(' && end > 0:
			if v, known := values[rest[1:end]]; known {
				b.WriteString(v)
			} else {
				b.WriteString("$" + rest[:end+1])
			}
			s = rest[end+1:]
		default:
			b.WriteString("$" + rest[:1])
			s = rest[1:]
		}
	}
}

func envMap(list []EnvVar) map[string]string {
	out := make(map[string]string, len(list))
	for _, v := range list {
		out[v.Name] = v.Value
	}
	return out
}
