package storage

import (
	"testing"

	"pgregory.net/rapid"
)

func TestKeyNamespaces(t *testing.T) {
	for _, tt := range []struct {
		name              string
		prefix, resource  string
		namespaced        bool
		key               string
		recursive         bool
		prepared          string
		namespace, object string
		whole             bool
	}{
		{"object", "/registry", "/pods", true, "/pods/ns/a", false, "/registry/pods/ns/a", "ns", "a", false},
		{"one namespace", "/registry", "/pods", true, "/pods/ns", true, "/registry/pods/ns/", "ns", "", false},
		{"all namespaces", "/registry", "/pods", true, "/pods", true, "/registry/pods/", "", "", true},
		{"cluster-scoped object", "/registry", "/minions", false, "/minions/n1", false, "/registry/minions/n1", "", "n1", false},
		{"cluster-scoped list", "/registry", "/minions", false, "/minions", true, "/registry/minions/", "", "", false},
		{"path of two segments", "/registry", "/services/specs", true, "/services/specs/ns/s", false, "/registry/services/specs/ns/s", "ns", "s", false},
		{"custom resource", "/registry", "/example.com/widgets", true, "/example.com/widgets/ns/w", false, "/registry/example.com/widgets/ns/w", "ns", "w", false},
		{"prefix without slashes", "registry/", "/pods/", true, "/pods/ns/a", false, "/registry/pods/ns/a", "ns", "a", false},
		{"empty prefix", "", "/pods/", true, "/pods/ns/a", false, "/pods/ns/a", "ns", "a", false},
		{"object without a namespace", "", "/pods/", true, "/pods/a", false, "/pods/a", "", "a", false},
		{"object of the empty namespace", "", "/pods/", true, "/pods//a", false, "/pods//a", "", "a", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, err := newKeyspace(tt.prefix, tt.resource, tt.namespaced)
			if err != nil {
				t.Fatal(err)
			}
			prepared, err := k.prepare(tt.key, tt.recursive)
			if err != nil || prepared != tt.prepared {
				t.Fatalf("prepared as %q (%v), want %q", prepared, err, tt.prepared)
			}
			if namespace, whole := k.namespace(prepared); namespace != tt.namespace || whole != tt.whole {
				t.Errorf("namespace %q, whole %v; want %q, %v", namespace, whole, tt.namespace, tt.whole)
			}
			if namespace, name := k.split(prepared); namespace != tt.namespace || name != tt.object {
				t.Errorf("split into %q and %q; want %q and %q", namespace, name, tt.namespace, tt.object)
			}
		})
	}
}

func TestKeyspaceRefusesPrefixes(t *testing.T) {
	for _, resource := range []string{"", "/", "//", "pods"} {
		if _, err := newKeyspace("/registry", resource, true); err == nil {
			t.Errorf("%q was taken for a resource prefix", resource)
		}
	}
}

// An object and every prefix that a client can list it under agree on its shard.
func TestKeyAndPrefixAgree(t *testing.T) {
	segment := rapid.StringMatching(`[a-z0-9][a-z0-9.-]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		namespace, name := segment.Draw(t, "namespace"), segment.Draw(t, "name")
		resource := "/" + segment.Draw(t, "resource")
		k, err := newKeyspace("/registry", resource, true)
		if err != nil {
			t.Fatal(err)
		}
		key, err := k.prepare(resource+"/"+namespace+"/"+name, false)
		if err != nil {
			t.Fatal(err)
		}
		prefix, err := k.prepare(resource+"/"+namespace, true)
		if err != nil {
			t.Fatal(err)
		}
		ofKey, _ := k.namespace(key)
		ofPrefix, whole := k.namespace(prefix)
		if ofKey != namespace || ofPrefix != namespace || whole {
			t.Fatalf("key in %q, prefix in %q (whole %v), want %q", ofKey, ofPrefix, whole, namespace)
		}
		if all, whole := k.namespace(k.root()); all != "" || !whole {
			t.Fatalf("the root is in namespace %q, whole %v", all, whole)
		}
	})
}

func TestLeastLoaded(t *testing.T) {
	got := leastLoaded([]uint64{1, 2, 3, 4}, map[uint64]int{1: 2, 2: 1, 3: 5, 4: 1})
	if len(got) != 2 || got[0] != 2 || got[1] != 4 {
		t.Errorf("least loaded: %v, want [2 4]", got)
	}
}
