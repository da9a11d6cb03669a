// A gRPC client that takes its configuration over xDS. A line of input is a number of calls; the answers are counted.
const grpc = require('@grpc/grpc-js');
require('@grpc/grpc-js-xds').register();

const client = new grpc.Client(`xds:///${process.argv[2]}`, grpc.credentials.createInsecure());
const same = (bytes) => bytes;
const call = () =>
  new Promise((done) => {
    const options = { deadline: Date.now() + 5000 };
    const answered = (error, answer) => done(error ? `${grpc.status[error.code]}: ${error.details}` : answer.toString());
    client.makeUnaryRequest('/echo.Echo/Unary', same, same, Buffer.from('hello'), new grpc.Metadata(), options, answered);
  });

(async () => {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const counts = {};
    for (let number = 0; number < Number(line); number += 1) {
      const answer = await call();
      counts[answer] = (counts[answer] || 0) + 1;
    }
    console.log(JSON.stringify(counts));
  }
  process.exit(0);
})();
