package clients

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/sim/history"
)

// resource is a kind of object that clients write, with one text in it. Keys are resource/namespace/name.
type resource struct {
	name   string
	root   string // of its group's paths in the API
	encode func(meta metav1.ObjectMeta, value string) any
	decode func(data []byte) (metav1.ObjectMeta, string, error)
}

var resources = []resource{
	{
		name: "configmaps", root: "/api/v1",
		encode: func(meta metav1.ObjectMeta, value string) any {
			return corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: meta, Data: map[string]string{"value": value}}
		},
		decode: func(data []byte) (metav1.ObjectMeta, string, error) {
			var object corev1.ConfigMap
			err := json.Unmarshal(data, &object)
			return object.ObjectMeta, object.Data["value"], err
		},
	},
	{
		// They are encrypted where they are stored.
		name: "secrets", root: "/api/v1",
		encode: func(meta metav1.ObjectMeta, value string) any {
			return corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: meta, Data: map[string][]byte{"value": []byte(value)}}
		},
		decode: func(data []byte) (metav1.ObjectMeta, string, error) {
			var object corev1.Secret
			err := json.Unmarshal(data, &object)
			return object.ObjectMeta, string(object.Data["value"]), err
		},
	},
}

// namePrefix tells the clients' objects from those that the cluster itself puts into namespaces.
const namePrefix = "thing-"

// key is the history's name of an object.
func (r *resource) key(namespace, name string) string {
	return r.name + "/" + namespace + "/" + name
}

// path is where the object, or the list, of a key is served. An empty namespace stands for all.
func (r *resource) path(namespace, name string) string {
	path := r.root
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	path += "/" + r.name
	if name != "" {
		path += "/" + name
	}
	return path
}

// object reads one as the API gives it. It is nil if it is none of the clients'.
func (r *resource) object(data []byte, namespaces string) (*history.Object, error) {
	meta, value, err := r.decode(data)
	if err != nil {
		return nil, fmt.Errorf("reading one of the %s: %w", r.name, err)
	}
	if !strings.HasPrefix(meta.Name, namePrefix) || !strings.HasPrefix(meta.Namespace, namespaces) {
		return nil, nil
	}
	revision, err := parseRevision(meta.ResourceVersion)
	if err != nil {
		return nil, err
	}
	return &history.Object{Key: r.key(meta.Namespace, meta.Name), UID: string(meta.UID), Value: value, Revision: revision}, nil
}
