package storage

import (
	"fmt"
	"path"
	"strings"

	kstorage "k8s.io/apiserver/pkg/storage"
)

// keyspace is the part of the key space that one resource occupies.
type keyspace struct {
	// prefix is the cluster's, with a slash at its end: "/registry/".
	prefix string
	// resource is the resource's, with a slash at its start: "/pods".
	resource   string
	namespaced bool
}

// newKeyspace checks and normalises the prefixes. prefix may lack slashes at either
// end; resource must start with one and be more than it.
func newKeyspace(prefix, resource string, namespaced bool) (keyspace, error) {
	if !strings.HasPrefix(resource, "/") || strings.Trim(resource, "/") == "" {
		return keyspace{}, fmt.Errorf("resource prefix %q must be a path that starts with a slash", resource)
	}
	prefix = path.Join("/", prefix)
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return keyspace{prefix: prefix, resource: resource, namespaced: namespaced}, nil
}

// prepare makes the stored key of the key that upstream's registry passes, or the
// stored prefix if recursive. Errors: upstream's, for keys that are empty, climb
// out of the resource or belong to another one.
func (k keyspace) prepare(key string, recursive bool) (string, error) {
	key, err := kstorage.PrepareKey(k.resource, key, recursive)
	if err != nil {
		return "", err
	}
	return k.prefix + strings.TrimPrefix(key, "/"), nil
}

// root is the stored prefix of all of the resource's objects.
func (k keyspace) root() string {
	return k.prefix + strings.Trim(k.resource, "/") + "/"
}

// namespace is the namespace that a stored key, or a stored prefix ending in a
// slash, belongs to. whole is true for a prefix that covers several namespaces. The
// namespace is empty for cluster-scoped objects.
func (k keyspace) namespace(key string) (namespace string, whole bool) {
	if !k.namespaced {
		return "", false
	}
	rest := strings.TrimPrefix(key, k.root())
	namespace, _, found := strings.Cut(rest, "/")
	if found {
		return namespace, false
	}
	return "", rest == ""
}

// split is the namespace and the name of a stored key, for error messages.
func (k keyspace) split(key string) (namespace, name string) {
	rest := strings.TrimPrefix(key, k.root())
	if !k.namespaced {
		return "", rest
	}
	namespace, name, found := strings.Cut(rest, "/")
	if !found {
		return "", rest
	}
	return namespace, name
}
