package storage

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	kstorage "k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"shoal/consensus/store"
)

const bookmarkPeriodInTests = 500 * time.Millisecond

// upstreamTest is one test of upstream's suite for storage.Interface.
type upstreamTest struct {
	name string
	run  func(ctx context.Context, t *testing.T, e upstreamEnv)
	// needsReplica says why the test means nothing on a peer without a replica.
	needsReplica string
	// together are namespaces that have to be in one shard.
	together []string
	// unsafeDelete runs it with the feature AllowUnsafeMalformedObjectDeletion.
	unsafeDelete bool
	// waits says that it spends its time waiting: it runs beside others.
	waits bool
	// alone gives it a cluster where nothing else happens and with a small history: it
	// compacts, or calculates with revisions.
	alone bool
}

// upstreamEnv makes storages for a test.
type upstreamEnv struct {
	t       *testing.T
	cluster cluster
	place   place
	top     topology
}

// onPods runs one of upstream's tests that wants nothing but a store of pods. T is *testing.T, or testing.TB where it serves benchmarks too.
func onPods[T testing.TB](test func(context.Context, T, kstorage.Interface)) func(context.Context, *testing.T, upstreamEnv) {
	return func(ctx context.Context, t *testing.T, e upstreamEnv) { test(ctx, any(t).(T), e.pods()) }
}

func (e upstreamEnv) pods(options ...option) *pods {
	p := newPods(e.t, e.place.peer(e.cluster), e.top, options...)
	p.replica = e.cluster.leader
	if p.keys.prefix == "/" {
		e.cluster.wipe(e.t, p.keys.root())
	}
	return p
}

// upstreamTests are upstream's tests, in the order of their source. The list is
// checked against the source: see TestUpstreamSuiteIsComplete.
var upstreamTests = []upstreamTest{
	{name: "RunTestCreate", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestCreate(ctx, t, s, s.checkStored)
	}},
	{name: "RunTestCreateWithTTL", waits: true, run: onPods(storagetesting.RunTestCreateWithTTL)},
	{name: "RunTestCreateWithKeyExist", run: onPods(storagetesting.RunTestCreateWithKeyExist)},
	{name: "RunTestGet", run: onPods(storagetesting.RunTestGet)},
	{name: "RunTestUnconditionalDelete", run: onPods(storagetesting.RunTestUnconditionalDelete)},
	{name: "RunTestConditionalDelete", run: onPods(storagetesting.RunTestConditionalDelete)},
	{name: "RunTestDeleteWithSuggestion", run: onPods(storagetesting.RunTestDeleteWithSuggestion)},
	{name: "RunTestDeleteWithSuggestionAndConflict", run: onPods(storagetesting.RunTestDeleteWithSuggestionAndConflict)},
	{name: "RunTestDeleteWithConflict", run: onPods(storagetesting.RunTestDeleteWithConflict)},
	{name: "RunTestDeleteWithSuggestionOfDeletedObject", run: onPods(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject)},
	{name: "RunTestValidateDeletionWithSuggestion", run: onPods(storagetesting.RunTestValidateDeletionWithSuggestion)},
	{name: "RunTestValidateDeletionWithOnlySuggestionValid", run: onPods(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid)},
	{name: "RunTestPreconditionalDeleteWithSuggestion", run: onPods(storagetesting.RunTestPreconditionalDeleteWithSuggestion)},
	{name: "RunTestPreconditionalDeleteWithOnlySuggestionPass", run: onPods(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass)},
	{name: "RunTestList", alone: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		r := newRenumbered(t, e.pods())
		storagetesting.RunTestList(ctx, t, r, r.compact, false, nil)
	}},
	{name: "RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError", unsafeDelete: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		codec := &failingCodec{Codec: testCodec}
		storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(ctx, t, e.pods(withCodec(codec)), codec.failing.Store)
	}},
	{name: "RunTestDeleteExpectedTransformOrDecodeError", unsafeDelete: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		codec := &failingCodec{Codec: testCodec}
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, e.pods(withCodec(codec)), codec.failing.Store)
		transformer := &failingTransformer{Transformer: storagetesting.NewPrefixTransformer([]byte("test!"), false)}
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, e.pods(withTransformer(transformer)), transformer.failing.Store)
	}},
	{name: "RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError", unsafeDelete: true, run: onPods(storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError)},
	{name: "RunTestConsistentList", alone: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		r := newRenumbered(t, e.pods())
		storagetesting.RunTestConsistentList(ctx, t, r, r.increase, false, true, false)
	}},
	{name: "RunTestGetListNonRecursive", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestGetListNonRecursive(ctx, t, s.touch, s)
	}},
	{name: "RunTestGetListRecursivePrefix", run: onPods(storagetesting.RunTestGetListRecursivePrefix)},
	{name: "RunTestGetListWithErrorAggregation", unsafeDelete: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestGetListWithErrorAggregation(ctx, t, e.pods(withPrefix("")), &corruptError{what: "bits flipped", err: errors.New("bits flipped")})
	}},
	{name: "RunTestGetListWithoutErrorAggregation", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestGetListWithoutErrorAggregation(ctx, t, e.pods(withPrefix("")), &corruptError{what: "bits flipped", err: errors.New("bits flipped")})
	}},
	{name: "RunTestListContinuation", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestListContinuation(ctx, t, s, s.checkReads)
	}},
	{name: "RunTestListPaginationRareObject", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestListPaginationRareObject(ctx, t, s, s.checkReads)
	}},
	{name: "RunTestListContinuationWithFilter", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestListContinuationWithFilter(ctx, t, s, s.checkReads)
	}},
	{name: "RunTestListInconsistentContinuation", alone: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestListInconsistentContinuation(ctx, t, s, s.compact)
	}},
	{name: "RunTestListResourceVersionMatch", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestListResourceVersionMatch(ctx, t, e.pods())
	}},
	{name: "RunTestGuaranteedUpdate", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestGuaranteedUpdate(ctx, t, s, s.checkStored)
	}},
	{name: "RunTestGuaranteedUpdateWithTTL", waits: true, run: onPods(storagetesting.RunTestGuaranteedUpdateWithTTL)},
	{name: "RunTestGuaranteedUpdateChecksStoredData", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestGuaranteedUpdateChecksStoredData(ctx, t, e.pods())
	}},
	{name: "RunTestGuaranteedUpdateWithConflict", run: onPods(storagetesting.RunTestGuaranteedUpdateWithConflict)},
	{name: "RunTestGuaranteedUpdateWithSuggestionAndConflict", run: onPods(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict)},
	{name: "RunTestTransformationFailure", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestTransformationFailure(ctx, t, e.pods())
	}},
	{name: "RunTestStats", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		for _, sized := range []bool{false, true} {
			s := e.pods()
			if sized {
				if err := s.EnableResourceSizeEstimation(func(context.Context) ([]string, error) { return nil, nil }); err != nil {
					t.Fatal(err)
				}
			}
			storagetesting.RunTestStats(ctx, t, s, testCodec, s.transformer, sized)
		}
	}},
	{name: "RunTestListPaging", run: onPods(storagetesting.RunTestListPaging)},
	{name: "RunTestNamespaceScopedList", run: onPods(storagetesting.RunTestNamespaceScopedList)},
	{name: "RunTestCompactRevision", alone: true, needsReplica: "CompactRevision tells of the local replicas, without asking anybody", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		r := newRenumbered(t, e.pods())
		storagetesting.RunTestCompactRevision(ctx, t, r, r.increase, r.compact)
	}},
	{name: "RunTestKeySchema", run: onPods(storagetesting.RunTestKeySchema)},
	{name: "RunTestWatch", run: onPods(storagetesting.RunTestWatch)},
	{name: "RunTestWatchFromZero", alone: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunTestWatchFromZero(ctx, t, s, s.compact)
	}},
	{name: "RunTestDeleteTriggerWatch", run: onPods(storagetesting.RunTestDeleteTriggerWatch)},
	{name: "RunTestWatchFromNonZero", run: onPods(storagetesting.RunTestWatchFromNonZero)},
	{name: "RunTestDelayedWatchDelivery", waits: true, run: onPods(storagetesting.RunTestDelayedWatchDelivery)},
	{name: "RunTestWatchError", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestWatchError(ctx, t, e.pods())
	}},
	{name: "RunTestWatchWithUnsafeDelete", unsafeDelete: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunTestWatchWithUnsafeDelete(ctx, t, e.pods(), &corruptError{what: "bits flipped", err: errors.New("bits flipped")})
	}},
	{name: "RunTestWatchContextCancel", run: onPods(storagetesting.RunTestWatchContextCancel)},
	{name: "RunTestWatcherTimeout", run: onPods(storagetesting.RunTestWatcherTimeout)},
	{name: "RunTestWatchDeleteEventObjectHaveLatestRV", run: onPods(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV)},
	{name: "RunTestWatchInitializationSignal", run: onPods(storagetesting.RunTestWatchInitializationSignal)},
	{name: "RunOptionalTestProgressNotify", waits: true, run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		s := e.pods()
		storagetesting.RunOptionalTestProgressNotify(ctx, t, s, s.touch)
	}},
	{name: "RunTestClusterScopedWatch", run: onPods(storagetesting.RunTestClusterScopedWatch)},
	{name: "RunTestNamespaceScopedWatch", run: onPods(storagetesting.RunTestNamespaceScopedWatch)},
	{
		// a namespace's watch asks its own shard alone (D3): what happens in a namespace of another shard gives it no bookmark
		name: "RunTestWatchDispatchBookmarkEvents", waits: true, together: []string{"test-ns", "other-ns-0", "other-ns-1"},
		run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
			storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, e.pods(), true)
		},
	},
	{name: "RunTestOptionalWatchBookmarksWithCorrectResourceVersion", waits: true, run: onPods(storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion)},
	{name: "RunSendInitialEventsBackwardCompatibility", run: onPods(storagetesting.RunSendInitialEventsBackwardCompatibility)},
	{name: "RunWatchSemantics", run: onPods(storagetesting.RunWatchSemantics)},
	{
		// for the same reason
		name: "RunWatchSemanticInitialEventsExtended", alone: true, together: []string{"ns-foo", "other-ns-foo"},
		run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
			storagetesting.RunWatchSemanticInitialEventsExtended(ctx, t, e.pods())
		},
	},
	{name: "RunWatchListMatchSingle", run: onPods(storagetesting.RunWatchListMatchSingle)},
	{name: "RunWatchErrorIsBlockingFurtherEvents", run: func(ctx context.Context, t *testing.T, e upstreamEnv) {
		storagetesting.RunWatchErrorIsBlockingFurtherEvents(ctx, t, e.pods())
	}},
}

// TestUpstream runs upstream's suite at every place, but for the tests that only
// wait.
func TestUpstream(t *testing.T) {
	shared := newCluster(t, store.Limits{})
	quiet := newCluster(t, store.Limits{Bytes: smallHistory, Age: time.Hour})
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			for _, test := range upstreamTests {
				if test.waits {
					continue
				}
				if test.needsReplica != "" && strings.HasSuffix(place.name, "without a replica") {
					t.Logf("left out: %s: %s", test.name, test.needsReplica)
					continue
				}
				t.Run(test.name, func(t *testing.T) {
					featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.AllowUnsafeMalformedObjectDeletion, test.unsafeDelete)
					e := upstreamEnv{t: t, cluster: shared, place: place, top: place.top.together(test.together)}
					if test.alone {
						e.cluster = quiet
					}
					test.run(t.Context(), t, e)
				})
			}
		})
	}
}

// TestUpstreamWaiting runs the rest beside each other, which is not possible where
// feature gates are set.
func TestUpstreamWaiting(t *testing.T) {
	t.Parallel()
	shared := newCluster(t, store.Limits{})
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			for _, test := range upstreamTests {
				if test.waits {
					t.Run(test.name, func(t *testing.T) {
						t.Parallel()
						test.run(t.Context(), t, upstreamEnv{t: t, cluster: shared, place: place, top: place.top.together(test.together)})
					})
				}
			}
		})
	}
}

// TestUpstreamSuiteIsComplete finds tests that upstream has added: none may be
// missing from the list above without a word.
func TestUpstreamSuiteIsComplete(t *testing.T) {
	known := map[string]bool{}
	for _, test := range upstreamTests {
		known[test.name] = true
	}
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "k8s.io/apiserver/pkg/storage/testing").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in %s: %v", dir, err)
	}
	found := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`(?m)^func (Run\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			if strings.HasPrefix(match[1], "RunBenchmark") {
				continue
			}
			found++
			if !known[match[1]] {
				t.Errorf("upstream's %s is not run", match[1])
			}
		}
	}
	if found != len(upstreamTests) {
		t.Errorf("upstream has %d tests, the list %d", found, len(upstreamTests))
	}
}

// failingCodec fails to decode while failing is set.
type failingCodec struct {
	runtime.Codec
	failing atomic.Bool
}

func (c *failingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if c.failing.Load() {
		return nil, nil, errors.New("decoding fails")
	}
	return c.Codec.Decode(data, defaults, into)
}

// failingTransformer fails to open values while failing is set.
type failingTransformer struct {
	value.Transformer
	failing atomic.Bool
}

func (f *failingTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if f.failing.Load() {
		return nil, false, errors.New("opening fails")
	}
	return f.Transformer.TransformFromStorage(ctx, data, dataCtx)
}
