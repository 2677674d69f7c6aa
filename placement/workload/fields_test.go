package workload

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// kinds are what the workloads' fields are listed of.
var kinds = []any{
	appsv1.Deployment{}, appsv1.ReplicaSet{}, corev1.ReplicationController{}, appsv1.StatefulSet{}, appsv1.DaemonSet{},
	batchv1.Job{}, batchv1.CronJob{}, policyv1.PodDisruptionBudget{}, autoscalingv2.HorizontalPodAutoscaler{}, discoveryv1.EndpointSlice{},
}

// leaves are types whose fields are not the workload's own.
var leaves = regexp.MustCompile(`^(v1\.(ObjectMeta|TypeMeta|LabelSelector|PodTemplateSpec|JobTemplateSpec|ObjectReference|PersistentVolumeClaim|Time|Condition)|resource\.Quantity|intstr\.IntOrString)$`)

// fieldsOf lists the JSON paths of a type's fields, with structs resolved.
func fieldsOf(path string, of reflect.Type, add func(string)) {
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct || leaves.MatchString(of.String()) || strings.HasSuffix(of.Name(), "Condition") {
		add(path)
		return
	}
	for i := range of.NumField() {
		name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
		switch name {
		case "metadata", "":
		default:
			fieldsOf(path+"."+name, of.Field(i).Type, add)
		}
	}
}

// TestEveryFieldHasATest: fields.txt has every field of the spec and status of every workload, and behind it the tests that show
// what it does, or "-" and why it does nothing. A field that a new version of Kubernetes brings is missing there until it has one.
func TestEveryFieldHasATest(t *testing.T) {
	tests := testsOfTheModule(t)
	listed, met := map[string]bool{}, map[string]bool{}
	file, err := os.Open("fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if len(words) < 2 {
			t.Errorf("%s has no test", words[0])
			continue
		}
		listed[words[0]] = true
		for _, name := range words[1:] {
			if words[1] != "-" && !tests[name] {
				t.Errorf("%s: there is no %s", words[0], name)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		of := reflect.TypeOf(kind)
		fieldsOf(of.Name(), of, func(path string) {
			entry := path
			for !listed[entry] { // "a.b.*" stands for all below
				above := strings.LastIndexByte(strings.TrimSuffix(entry, ".*"), '.')
				if above < 0 {
					t.Errorf("%s is not listed", path)
					return
				}
				entry = entry[:above] + ".*"
			}
			met[entry] = true
		})
	}
	for entry := range listed {
		if !met[entry] {
			t.Errorf("%s is listed and does not exist", entry)
		}
	}
}

// testsOfTheModule are the names of all tests there are.
func testsOfTheModule(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func (\w+)\(t \*testing\.T`)
	names := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range declared.FindAllSubmatch(text, -1) {
			names[string(match[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
