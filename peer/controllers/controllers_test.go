package controllers_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"runtime"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/internal/polling"
	"shoal/peer/api"
	"shoal/peer/api/apitest"
	"shoal/peer/controllers"
)

// shared is the one cluster of these tests, with its controllers running.
var (
	shared *apitest.Cluster
	client kubernetes.Interface
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "shoal-controllers-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if shared, err = apitest.Start(dir, func(c *api.Config) { c.Usage = used.of }); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, shared.Stop()) }()
	if client, err = kubernetes.NewForConfig(shared.Server.Loopback()); err != nil {
		return 0, err
	}
	config, err := configuration()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controllers.Run(ctx, config) }()
	defer func() { cancel(); err = errors.Join(err, <-done) }()
	return m.Run(), nil
}

func configuration() (controllers.Config, error) {
	ca, key, err := newCA()
	return controllers.Config{
		Loopback: shared.Server.Loopback(), LoopbackAs: shared.Server.LoopbackAs, NodePorts: shared.Server.NodePorts(), ProvidePods: shared.Server.Pods().Provide,
		RootCA: shared.Identity.CAPEM(), ServiceAccountKey: shared.Identity.ServiceAccountKey,
		SigningCA: func() (*x509.Certificate, crypto.Signer, error) { return ca, key, nil },
	}, err
}

func newCA() (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signing"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	return ca, key, err
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	polling.Until(t, 20*time.Millisecond, 15*time.Second, "it becomes so", func(context.Context) error { return check() })
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// namespace makes a namespace and waits until pods may be created in it.
func namespace(t *testing.T, name string) {
	t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	must(client.CoreV1().Namespaces().Create(t.Context(), object, metav1.CreateOptions{}))(t)
	eventually(t, func() error {
		_, err := client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
}

func pod(name string, owners ...metav1.OwnerReference) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, OwnerReferences: owners},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example.test/image"}}},
	}
}

func TestNamespaceGetsAccountAndRootCA(t *testing.T) {
	namespace(t, "furnished")
	eventually(t, func() error {
		ca, err := client.CoreV1().ConfigMaps("furnished").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && ca.Data["ca.crt"] != string(shared.Identity.CAPEM()) {
			return errors.New("wrong root CA")
		}
		return err
	})
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}
	must(client.CoreV1().Secrets("furnished").Create(t.Context(), secret, metav1.CreateOptions{}))(t)
	eventually(t, func() error {
		s, err := client.CoreV1().Secrets("furnished").Get(t.Context(), "token", metav1.GetOptions{})
		if err == nil && len(s.Data["token"]) == 0 {
			return errors.New("no token in the Secret")
		}
		return err
	})
}

func TestDeletedNamespaceIsEmptied(t *testing.T) {
	namespace(t, "doomed")
	must(client.CoreV1().ConfigMaps("doomed").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}))(t)
	must(client.CoreV1().Pods("doomed").Create(t.Context(), pod("p"), metav1.CreateOptions{}))(t)
	if err := client.CoreV1().Namespaces().Delete(t.Context(), "doomed", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if _, err := client.CoreV1().Namespaces().Get(t.Context(), "doomed", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("namespace: %v, want NotFound", err)
		}
		return nil
	})
	maps := must(client.CoreV1().ConfigMaps("doomed").List(t.Context(), metav1.ListOptions{}))(t)
	if len(maps.Items) != 0 {
		t.Errorf("%d configmaps are left", len(maps.Items))
	}
}

func TestOwnedObjectsGoWithTheirOwner(t *testing.T) {
	namespace(t, "owned")
	owner := must(client.CoreV1().ConfigMaps("owned").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{}))(t)
	reference := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.UID}
	must(client.CoreV1().Pods("owned").Create(t.Context(), pod("child", reference), metav1.CreateOptions{}))(t)
	must(client.CoreV1().Pods("owned").Create(t.Context(), pod("stranger"), metav1.CreateOptions{}))(t)
	if err := client.CoreV1().ConfigMaps("owned").Delete(t.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if _, err := client.CoreV1().Pods("owned").Get(t.Context(), "child", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("child: %v, want NotFound", err)
		}
		return nil
	})
	must(client.CoreV1().Pods("owned").Get(t.Context(), "stranger", metav1.GetOptions{}))(t)
}

func TestAggregatedRolesAreFilled(t *testing.T) {
	eventually(t, func() error {
		role, err := client.RbacV1().ClusterRoles().Get(t.Context(), "edit", metav1.GetOptions{})
		if err == nil && len(role.Rules) == 0 {
			return errors.New("role edit has no rules")
		}
		return err
	})
}

func TestCertificateRequests(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	ask := func(name, commonName, uri string) {
		t.Helper()
		request := &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}}
		if uri != "" {
			request.URIs = append(request.URIs, must(url.Parse(uri))(t))
		}
		der := must(x509.CreateCertificateRequest(rand.Reader, request, key))(t)
		csr := &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
				SignerName: certificatesv1.KubeAPIServerClientSignerName,
				Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
			},
		}
		csr = must(client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), csr, metav1.CreateOptions{}))(t)
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
		must(client.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), name, csr, metav1.UpdateOptions{}))(t)
	}
	get := func(name string, want func(*certificatesv1.CertificateSigningRequest) error) {
		t.Helper()
		eventually(t, func() error {
			csr, err := client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return want(csr)
		})
	}
	ask("user", "bob", "")
	get("user", func(csr *certificatesv1.CertificateSigningRequest) error {
		block, _ := pem.Decode(csr.Status.Certificate)
		if block == nil {
			return errors.New("not signed")
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err == nil && (certificate.Subject.CommonName != "bob" || certificate.IsCA) {
			t.Errorf("signed %v", certificate.Subject)
		}
		return err
	})
	ask("peer", "bob", "shoal://cluster/peer/0123")
	get("peer", func(csr *certificatesv1.CertificateSigningRequest) error {
		for _, c := range csr.Status.Conditions {
			if c.Type == certificatesv1.CertificateFailed {
				return nil
			}
		}
		return errors.New("not refused")
	})
}

// TestRunEnds starts a second set of controllers, ends it and looks for what it left running.
func TestRunEnds(t *testing.T) {
	config := must(configuration())(t)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- controllers.Run(ctx, config) }()
	eventually(t, func() error {
		if runtime.NumGoroutine() < before+100 {
			return errors.New("not started")
		}
		return nil
	})
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not end")
	}
	eventually(t, func() error {
		if now := runtime.NumGoroutine(); now > before+20 {
			return fmt.Errorf("%d goroutines before, %d after", before, now)
		}
		return nil
	})
}
