package controllers

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	csrutil "k8s.io/client-go/util/certificate/csr"
	capi "k8s.io/kubernetes/pkg/apis/certificates"
	controller "k8s.io/kubernetes/pkg/controller/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/authority"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
)

// Life of signed certificates when the request names none, and how far they reach into the past for clocks that are
// behind. The life is kube-controller-manager's default.
const (
	certificateLife     = 365 * 24 * time.Hour
	certificateBackdate = 5 * time.Minute
)

// certificates approves, signs and cleans up certificate requests.
func certificates(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	requests := e.informers.Certificates().V1().CertificateSigningRequests()
	s := &signer{client: client, environment: e}
	signing := controller.NewCertificateController(ctx, "csrsigning", client, requests, s.handle)
	approving := approver.NewCSRApprovingController(ctx, client, requests)
	cleaning := cleaner.NewCSRCleanerController(client.CertificatesV1().CertificateSigningRequests(), requests)
	return concurrently(
		func(ctx context.Context) { signing.Run(ctx, workers) },
		func(ctx context.Context) { approving.Run(ctx, workers) },
		func(ctx context.Context) { cleaning.Run(ctx, 1) },
	), nil
}

// signer signs approved requests with the cluster's CA. Upstream's signer reads the CA from files; the CA of a cluster of
// peers is in memory.
type signer struct {
	client      kubernetes.Interface
	environment *environment
}

func (s *signer) handle(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	if len(csr.Status.Certificate) > 0 || !controller.IsCertificateRequestApproved(csr) || controller.HasTrueCondition(csr, certificatesv1.CertificateFailed) {
		return nil
	}
	check, ours := signers[csr.Spec.SignerName]
	if !ours {
		return nil
	}
	csr = csr.DeepCopy()
	request, err := capi.ParseCSR(csr.Spec.Request)
	if err == nil {
		err = check(request, usages(csr))
	}
	if err != nil {
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue,
			Reason: "SignerValidationFailure", Message: err.Error(), LastUpdateTime: metav1.Now(),
		})
	} else if csr.Status.Certificate, err = s.sign(request, csr.Spec); err != nil {
		return err
	}
	_, err = s.client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, csr, metav1.UpdateOptions{})
	return err
}

func (s *signer) sign(request *x509.CertificateRequest, spec certificatesv1.CertificateSigningRequestSpec) ([]byte, error) {
	ca, key, err := s.environment.SigningCA()
	if err != nil {
		return nil, fmt.Errorf("signing CA: %w", err)
	}
	life := certificateLife
	if spec.ExpirationSeconds != nil {
		life = min(life, csrutil.ExpirationSecondsToDuration(*spec.ExpirationSeconds))
	}
	authority := &authority.CertificateAuthority{RawCert: ca.Raw, Certificate: ca, PrivateKey: key}
	der, err := authority.Sign(request.Raw, policy(life, spec.Usages))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func policy(life time.Duration, usages []certificatesv1.KeyUsage) authority.SigningPolicy {
	return authority.PermissiveSigningPolicy{
		TTL: life, Usages: usages, Backdate: certificateBackdate, Short: 8 * time.Hour, Now: time.Now,
	}
}

func usages(csr *certificatesv1.CertificateSigningRequest) sets.Set[string] {
	set := sets.New[string]()
	for _, u := range csr.Spec.Usages {
		set.Insert(string(u))
	}
	return set
}

// signers are the signers that the cluster's CA stands for, with what they demand of a request. See
// https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers
var signers = map[string]func(*x509.CertificateRequest, sets.Set[string]) error{
	certificatesv1.KubeAPIServerClientSignerName: checkClient,
	certificatesv1.KubeAPIServerClientKubeletSignerName: func(request *x509.CertificateRequest, usages sets.Set[string]) error {
		return capi.ValidateKubeletClientCSR(request, sets.NewString(usages.UnsortedList()...))
	},
	certificatesv1.KubeletServingSignerName: func(request *x509.CertificateRequest, usages sets.Set[string]) error {
		return capi.ValidateKubeletServingCSR(request, sets.NewString(usages.UnsortedList()...))
	},
}

// checkClient demands what upstream's signer of client certificates does. In addition it refuses URIs: the same CA signs
// the certificates by which peers know each other, and those name the peer in a URI.
func checkClient(request *x509.CertificateRequest, usages sets.Set[string]) error {
	if len(request.URIs) > 0 {
		return fmt.Errorf("a client certificate must not name URIs")
	}
	allowed := sets.New(string(certificatesv1.UsageDigitalSignature), string(certificatesv1.UsageKeyEncipherment), string(certificatesv1.UsageClientAuth))
	if !usages.Has(string(certificatesv1.UsageClientAuth)) || !allowed.IsSuperset(usages) {
		return fmt.Errorf("usages must include %q and may otherwise be %v", certificatesv1.UsageClientAuth, sets.List(allowed))
	}
	return nil
}
